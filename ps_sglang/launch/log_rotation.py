"""Keeps log files from filling the disk.

A process's log is its standard output, which its own children write to as well: no handler inside
one of them could rotate it. The file is copied and emptied instead, as logrotate's `copytruncate`
does. All write to its end, so that they go on at its new beginning.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ps_sglang.progress import OnProgress

MOST_BYTES: Final = 100 << 20
"""A longer file is rotated."""
KEPT: Final = 3
"""Files of a log beside the one that is written: NAME.log.1 is the newest."""


class LogRotation:
    """The logs of a cluster; `rotate` is to be called again and again."""

    def __init__(self, logs: Sequence[Path], most_bytes: int = MOST_BYTES) -> None:
        self._logs = logs
        self._most_bytes = most_bytes
        self._reported: set[Path] = set()

    def rotate(self, on_progress: OnProgress) -> None:
        """Rotate the logs that are too long. One that cannot be rotated is reported once."""
        for log in self._logs:
            try:
                if log.stat().st_size > self._most_bytes:
                    _rotate(log)
            except FileNotFoundError:  # its process has not begun
                continue
            except OSError as error:
                _rotated(log, 0).unlink(missing_ok=True)
                if log not in self._reported:
                    self._reported.add(log)
                    on_progress(f"cannot rotate {log}, it grows on: {error.strerror}")

    def remove(self) -> None:
        """Remove all logs, with what was rotated."""
        for log in self._logs:
            for path in (log, *(_rotated(log, number) for number in range(KEPT + 1))):
                path.unlink(missing_ok=True)


def _rotate(log: Path) -> None:
    """Move what a log holds into `NAME.log.1`, and the older ones on.

    A line that is written in the microseconds between copying and emptying is lost.
    """
    for number in range(KEPT - 1, 0, -1):
        if (older := _rotated(log, number)).exists():
            older.replace(_rotated(log, number + 1))
    # Copied under another name first: a half of it must not look like all of it.
    part = _rotated(log, 0)
    with log.open("rb") as source, part.open("wb", buffering=0) as target:
        shutil.copyfileobj(source, target, 1 << 20)  # until nothing more comes
        os.truncate(log, 0)
    part.replace(_rotated(log, 1))


def _rotated(log: Path, number: int) -> Path:
    return log.with_name(f"{log.name}.{number}")
