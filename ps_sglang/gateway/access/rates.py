"""Requests a minute: who may send another one now, and how answers tell what is left.

A key's bucket holds as many requests as it may send in a minute, and fills evenly. So a client that
was quiet may send them all at once, as with OpenAI and Anthropic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

_MINUTE: Final = 60.0
_ROUNDING: Final = 1e-9  # of a request: who waited as told is not refused for less


@dataclass(frozen=True, slots=True)
class Rate:
    """A key's rate after one more request came.

    `limit` requests a minute, of which `remaining` may come at once; all of them may in
    `full_in` seconds. The request itself may come in `wait` seconds, 0 if it may now.
    """

    limit: int
    remaining: int
    full_in: float
    wait: float

    def openai_headers(self) -> dict[str, str]:
        """As OpenAI tells it; the time is a duration."""
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": _duration(self.full_in),
        }

    def anthropic_headers(self) -> dict[str, str]:
        """As Anthropic tells it; the time is a moment."""
        full_at = datetime.now(UTC) + timedelta(seconds=math.ceil(self.full_in))
        return {
            "anthropic-ratelimit-requests-limit": str(self.limit),
            "anthropic-ratelimit-requests-remaining": str(self.remaining),
            "anthropic-ratelimit-requests-reset": full_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }


class TokenBucket:
    """One key's requests of late, in seconds of a monotonic clock."""

    __slots__ = ("_at", "_missing")

    def __init__(self) -> None:
        self._missing = 0.0  # requests that the bucket lacks, as it stood at `_at`
        self._at = 0.0

    def take(self, per_minute: int, now: float) -> Rate:
        """Take one request out if there is one. `per_minute` may have changed since the last."""
        refilled = (now - self._at) * per_minute / _MINUTE
        missing = max(self._missing - refilled, 0.0)
        too_many = missing + 1 - per_minute
        if too_many < _ROUNDING:
            missing, too_many = missing + 1, 0.0
        self._missing, self._at = missing, now
        seconds_each = _MINUTE / per_minute
        return Rate(
            per_minute,
            max(int(per_minute - missing + _ROUNDING), 0),
            missing * seconds_each,
            too_many * seconds_each,
        )


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 120ms, 7.5s, 1m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < _MINUTE:
        return f"{math.ceil(seconds * 1000) / 1000:g}s"
    minutes, rest = divmod(math.ceil(seconds), int(_MINUTE))
    return f"{minutes}m{rest}s"
