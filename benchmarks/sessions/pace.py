"""What is said while a study runs: how far it is, and how long what is left takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Final

from benchmarks.sessions.drive import Load
from ps_sglang.progress import OnProgress

_START_S: Final = 30.0
"""To start a system, before one has been: SGLang's import and its workers' on two cores."""
_SELDOM_S: Final = 5.0


def seldom(on_progress: OnProgress) -> OnProgress:
    """Says a line unless less than five seconds have passed since the last, or the beginning."""
    last_told = time.monotonic()

    def tell(line: str) -> None:
        nonlocal last_told
        if time.monotonic() - last_told > _SELDOM_S:
            last_told = time.monotonic()
            on_progress(line)

    return tell


class Pace:
    """Learns from starts and runs.

    `starts`: the systems, each as often as it will be started. `step_costs`: how often these will
    be measured.
    """

    def __init__(self, starts: Sequence[str], sessions: int, step_costs: int = 0) -> None:
        self._starts = list(starts)
        self._sessions = sessions
        self._step_costs = step_costs
        self._step_costs_s: list[float] = []
        self._started: list[float] = []
        self._took: dict[tuple[str, Load], list[float]] = {}
        self._capacity: dict[str, float] = {}

    def step_costs_took(self, seconds: float) -> None:
        """What steps cost has been measured once more."""
        self._step_costs -= 1
        self._step_costs_s.append(seconds)

    def started(self, seconds: float) -> None:
        """The next system is up."""
        self._starts.pop(0)
        self._started.append(seconds)

    def took(self, system: str, load: Load, seconds: float, sessions_per_s: float) -> None:
        """A load has run."""
        self._took.setdefault((system, load), []).append(seconds)
        self._capacity[system] = max(self._capacity.get(system, 0.0), sessions_per_s)

    def left(self, system: str, rest: Sequence[Load], loads: Sequence[Load]) -> float:
        """Seconds for the `rest` of the system that is up, all starts left with `loads` each, and
        what is left of measuring step costs."""
        start = statistics.fmean(self._started or [_START_S])
        here = sum(self._expected(system, load) for load in rest)
        later = [
            start + sum(self._expected(name, next_load) for next_load in loads)
            for name in self._starts
        ]
        costs = self._step_costs * statistics.fmean(self._step_costs_s or [0.0])
        return here + sum(later) + costs

    def _expected(self, system: str, load: Load) -> float:
        if taken := self._took.get((system, load)):
            return statistics.fmean(taken)
        capacities = self._capacity or {system: 1.0}
        capacity = capacities.get(system, statistics.fmean(capacities.values()))
        return self._sessions / min(capacity, load.rate or capacity)
