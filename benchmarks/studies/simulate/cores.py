"""Where steps run: a device for each worker, or cores that all workers share."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Protocol


class Clock(Protocol):
    """Simulated time."""

    now: float

    def at(self, time: float, act: Callable[[], None]) -> None:
        """Do something then."""
        ...


@dataclass(eq=False, slots=True)
class Job:
    """Something that runs on `wants` cores until `ends`, a reading of `Cores.work`, then `act`s."""

    wants: float
    ends: float
    act: Callable[[], None]


class Cores:
    """Processor sharing: jobs that want more than `cores` together all slow down by one factor.

    No core is idle while a job lacks one. Without `cores` each job has a device of its own.
    """

    def __init__(self, clock: Clock, cores: float | None) -> None:
        self._clock, self._cores = clock, cores
        self._work = self._seen = 0.0
        self._due: list[tuple[float, int, Job]] = []
        self._numbers = count()
        self._demand = 0.0
        self._version = 0

    @property
    def work(self) -> float:
        """Seconds that a job would have run by now, had it begun with the clock."""
        if self._cores is None:
            return self._clock.now
        return self._work + (self._clock.now - self._seen) * self._speed

    @property
    def _speed(self) -> float:
        assert self._cores is not None
        return min(1.0, self._cores / self._demand) if self._demand else 1.0

    def run(self, seconds: float, act: Callable[[], None], wants: float = 1.0) -> Job:
        """Begin a job of so many seconds at full speed; `act` is called when it has ended."""
        job = Job(wants, self.work + seconds, act)
        self._settle()
        self._count(wants)
        self._await(job)
        return job

    def end_at(self, job: Job, work: float) -> None:
        """Change when a job that runs ends."""
        self._settle()
        job.ends = work
        self._await(job)

    def _await(self, job: Job) -> None:
        if self._cores is None:
            ends = job.ends
            self._clock.at(ends, lambda: self._end_alone(job, ends))
        else:
            heapq.heappush(self._due, (job.ends, next(self._numbers), job))
            self._schedule()

    def _end_alone(self, job: Job, ends: float) -> None:
        if job.ends == ends:  # else it was changed
            job.act()

    def _count(self, wants: float) -> None:
        self._demand += wants
        if self._demand < 1e-9:  # what is left of adding and subtracting fractions
            self._demand = 0.0

    def _settle(self) -> None:
        """Count the work until now, before the speed changes."""
        if self._cores is not None:
            self._work, self._seen = self.work, self._clock.now

    def _schedule(self) -> None:
        while self._due and self._due[0][0] != self._due[0][2].ends:
            heapq.heappop(self._due)
        self._version += 1
        if self._due:
            version = self._version
            left = max(0.0, self._due[0][0] - self.work)
            self._clock.at(self._clock.now + left / self._speed, lambda: self._tick(version))

    def _tick(self, version: int) -> None:
        if version != self._version:
            return
        ends, _, job = heapq.heappop(self._due)
        self._settle()
        self._work = ends
        self._count(-job.wants)
        self._schedule()
        job.act()
