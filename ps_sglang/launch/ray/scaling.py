"""How many workers a decoder has: by its unfinished requests, with hysteresis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from ps_sglang.launch.ray.keys import ScalingKeys

_ROOM: Final = 0.8
"""One worker fewer must be this full at most, else the next few requests would bring it back."""


@dataclass(frozen=True)
class ReplicaBounds:
    """How many workers of a kind there are, from `least` to `most`."""

    least: int
    most: int


class Scaler:
    """The number of workers of one pool, within `bounds`."""

    def __init__(self, bounds: ReplicaBounds, rule: ScalingKeys) -> None:
        self._bounds = bounds
        self._rule = rule
        self._busy_since: float | None = None
        self._idle_since: float | None = None

    def wanted(self, requests: int, workers: int, now: float) -> int:
        """How many of the pool's `workers` are to be there, with `requests` unfinished ones.

        Those that still start count as workers. Many may come at once, as who waits must not wait
        for one after the other; they go one by one.
        """
        target = self._rule.target_requests
        needed = min(self._bounds.most, max(self._bounds.least, math.ceil(requests / target)))
        is_busy = needed > workers
        is_idle = workers > self._bounds.least and requests <= _ROOM * target * (workers - 1)
        self._busy_since = _since(self._busy_since, is_busy, now)
        self._idle_since = _since(self._idle_since, is_idle, now)
        if self._busy_since is not None and now - self._busy_since >= self._rule.up_after:
            self._busy_since = None
            return needed
        if self._idle_since is not None and now - self._idle_since >= self._rule.down_after:
            self._idle_since = None
            return workers - 1
        return workers


def _since(before: float | None, holds: bool, now: float) -> float | None:
    """Since when something holds without a break, None if it does not."""
    if not holds:
        return None
    return now if before is None else before
