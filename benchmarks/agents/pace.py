"""How long what is left of a study takes, by what it has taken so far."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

from benchmarks.agents.drive import Load

_START_S: Final = 30.0
"""To start a system, before one has been: SGLang's import and its workers' on two cores."""


class Pace:
    """Learns from starts and runs. `starts`: the systems, each as often as it will be started."""

    def __init__(self, starts: Sequence[str], sessions: int) -> None:
        self._starts = list(starts)
        self._sessions = sessions
        self._started: list[float] = []
        self._took: dict[tuple[str, Load], list[float]] = {}
        self._capacity: dict[str, float] = {}

    def started(self, seconds: float) -> None:
        """The next system is up."""
        self._starts.pop(0)
        self._started.append(seconds)

    def took(self, system: str, load: Load, seconds: float, sessions_per_s: float) -> None:
        """A load has run."""
        self._took.setdefault((system, load), []).append(seconds)
        self._capacity[system] = max(self._capacity.get(system, 0.0), sessions_per_s)

    def left(self, system: str, rest: Sequence[Load], loads: Sequence[Load]) -> float:
        """Seconds for the `rest` of the system that is up, then all starts left, `loads` each."""
        start = statistics.fmean(self._started or [_START_S])
        here = sum(self._expected(system, load) for load in rest)
        later = [start + sum(self._expected(name, one) for one in loads) for name in self._starts]
        return here + sum(later)

    def _expected(self, system: str, load: Load) -> float:
        if taken := self._took.get((system, load)):
            return statistics.fmean(taken)
        known = self._capacity or {system: 1.0}
        capacity = known.get(system, statistics.fmean(known.values()))
        return self._sessions / min(capacity, load.rate or capacity)
