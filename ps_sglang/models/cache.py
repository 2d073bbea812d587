"""Preparing one folder in the cache exactly once."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ps_sglang.progress import progress


def prepare_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`, built by `build(empty_folder)` if no earlier call did.

    Safe between processes: one builds and the others wait for it. The folder appears under its
    name only when it is whole; a build that fails leaves nothing behind.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f".{folder.name}.lock"), waiting_for=folder.name):
        if not folder.is_dir():
            _build_then_rename(folder, build)
    return folder


def _build_then_rename(folder: Path, build: Callable[[Path], None]) -> None:
    # Left by a process that was killed: nobody else builds while we hold the lock.
    for left_over in folder.parent.glob(f".{folder.name}.partial-*"):
        shutil.rmtree(left_over)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        build(partial)
        partial.chmod(0o755)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _locked(path: Path, waiting_for: str) -> Iterator[None]:
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"another process is preparing {waiting_for}; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
