"""When to give up on workers that are not ready.

On a CPU they have a number of seconds. On a GPU nobody can say how long a worker loads weights,
compiles kernels and captures graphs, so there it has that time since it last wrote to its log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


class Deadline:
    """`limit_s` seconds from `began`, or from the last progress in any of the watched `logs`."""

    def __init__(self, limit_s: float, began: float, logs: Mapping[str, Path]) -> None:
        self._limit_s = limit_s
        self._began = began
        self._logs = logs
        self._sizes: dict[str, int] = {}
        self._progress: dict[str, float] = {}

    def missed(self, waiting: Sequence[str], now: float) -> str | None:
        """What to say if those `waiting` have had their time, None if they still have some."""
        watched = [name for name in waiting if name in self._logs]
        for name in watched:
            size = _size(self._logs[name])
            if size != self._sizes.get(name):
                self._sizes[name], self._progress[name] = size, now
        if not watched:
            late = now > self._began + self._limit_s
            return f"{waiting[0]} was not ready within {self._limit_s:g} s" if late else None
        if now - max(self._progress[name] for name in watched) <= self._limit_s:
            return None
        return (
            f"{waiting[0]} is not ready, and has written nothing for {self._limit_s:g} s; give "
            "--ready-timeout if it may be silent for longer"
        )


def _size(log: Path) -> int:
    try:
        return log.stat().st_size
    except OSError:
        return 0
