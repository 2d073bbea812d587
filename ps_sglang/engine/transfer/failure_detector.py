"""Which of the processes at the other ends have been silent for too long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from ps_sglang.engine.transfer.limits import TransferLimits

Name = TypeVar("Name")


class MonitoredProcess(Protocol):
    """A process, with the time at which something came from it last."""

    heard_at: float


class FailureDetector:
    """Checks processes from time to time, as often as `tick` is called."""

    def __init__(self, clock: Callable[[], float], limits: TransferLimits) -> None:
        """The first check is now."""
        self._clock = clock
        self._limits = limits
        self._checked_at = clock()

    def dead(self, processes: Mapping[Name, MonitoredProcess]) -> list[Name]:
        """The names of those not heard of for `lease_s`; time while this process stood still,
        when it could not have heard them either, does not count."""
        now = self._clock()
        if (gap := now - self._checked_at) > self._limits.beat_s:
            for process in processes.values():
                process.heard_at += gap
        self._checked_at = now
        limit = now - self._limits.lease_s
        return [name for name, process in processes.items() if process.heard_at < limit]
