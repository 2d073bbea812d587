"""Saving without harm: what cannot be written whole does not take the place of what was."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from safetensors import SafetensorError

from ps_sglang.errors import TrainingError

# torch's and safetensors' own errors for a full disk are no OSErrors.
_FAILED_WRITES = (OSError, SafetensorError, RuntimeError)
RESUME: Final = "what was saved before is whole; make room and run the same command with --resume"


@contextmanager
def saving(
    target: Path, errors: tuple[type[Exception], ...] = _FAILED_WRITES, mend: str = RESUME
) -> Iterator[None]:
    """Turn a failed write inside into a TrainingError that says what was to be saved."""
    try:
        yield
    except errors as error:
        free = shutil.disk_usage(next(p for p in target.parents if p.is_dir())).free
        reason = str(error).strip().splitlines()[0]
        raise TrainingError(
            f"could not save {target}: {reason} ({free / 1e9:.1f} GB free there); {mend}"
        ) from error
