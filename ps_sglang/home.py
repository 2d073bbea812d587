"""The folder where ps_sglang keeps what is slow to make again: demo models, fingerprints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

HOME_VARIABLE = "PS_SGLANG_HOME"


def home(environ: Mapping[str, str] = os.environ) -> Path:
    """The cache folder: `$PS_SGLANG_HOME`, or `~/.cache/ps_sglang`."""
    configured = environ.get(HOME_VARIABLE)
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "ps_sglang"
