"""When a process that died is started again: after a back-off, and not for ever."""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW_S: Final = 600.0
"""Deaths that are longer ago are forgotten: a worker that dies once a day is always restarted."""
SHORTEST_S: Final = 0.5
LONGEST_S: Final = 30.0


class Restarts:
    """The deaths of one process; at most `most` of them in WINDOW_S seconds are mended."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._deaths: deque[float] = deque()

    @property
    def count(self) -> int:
        """How many deaths are remembered."""
        return len(self._deaths)

    def coming(self, seconds: float) -> str:
        """In words: the restart that follows in so many seconds."""
        return f"restart {self.count} of {self.most} in {seconds:g} s"

    @property
    def limit(self) -> str:
        """In words: why there is no restart any more."""
        return f"{self.most} restarts in ten minutes are the limit"

    def died(self, now: float) -> float | None:
        """It died at `now`; returns in how many seconds to start it again, None for not at all."""
        self._deaths.append(now)
        while self._deaths[0] < now - WINDOW_S:
            self._deaths.popleft()
        if self.count > self.most:
            return None
        back_off: float = SHORTEST_S * 2 ** (self.count - 1)
        return min(LONGEST_S, back_off)
