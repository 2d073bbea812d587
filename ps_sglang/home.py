"""The folder where ps_sglang keeps what is slow to make again: demo models, fingerprints."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

HOME_VARIABLE = "PS_SGLANG_HOME"


def home(environ: Mapping[str, str] = os.environ) -> Path:
    """The cache folder: `$PS_SGLANG_HOME`, or `~/.cache/ps_sglang`."""
    configured = environ.get(HOME_VARIABLE)
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "ps_sglang"


def progress(message: str) -> None:
    """Tell the person who waits what is being done, on stderr."""
    # In one piece, as threads and processes tell things side by side.
    sys.stderr.write(f"ps-sglang: {message}\n")
    sys.stderr.flush()
