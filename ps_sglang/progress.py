"""Telling the person who waits what is being done, and how long it takes."""

from __future__ import annotations

import sys
from collections.abc import Callable

OnProgress = Callable[[str], None]
"""Takes a line for people."""


def progress(line: str) -> None:
    """A line on stderr; what a tool prints on stdout may be piped."""
    # In one piece, as threads and processes tell things side by side.
    sys.stderr.write(f"ps-sglang: {line}\n")
    sys.stderr.flush()


def duration(seconds: float) -> str:
    """Two units at most: 41 s, 7 min 03 s, 5 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
