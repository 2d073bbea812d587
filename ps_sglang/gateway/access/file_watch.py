"""Files that a person may change while the gateway runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

LOOK_SECONDS: Final = 1.0
"""How long a change may stay unseen; a look at the files costs some microseconds."""


class FileWatch:
    """Tells when one of some files has changed since it was last asked."""

    def __init__(self, paths: Sequence[Path], clock: Callable[[], float] = time.monotonic) -> None:
        self._paths = paths
        self._clock = clock
        self._looked = clock()
        self._seen = self._look()

    def has_changed(self) -> bool:
        """Whether a file was changed, replaced or removed; True once for each change."""
        if (now := self._clock()) - self._looked < LOOK_SECONDS:
            return False
        self._looked = now
        before, self._seen = self._seen, self._look()
        return before != self._seen

    def _look(self) -> list[object]:
        return [_state(path) for path in self._paths]


def _state(path: Path) -> object:
    try:
        stat = os.stat(path)
    except OSError as error:
        return error.errno
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
