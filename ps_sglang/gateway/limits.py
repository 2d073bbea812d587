"""What the gateway takes on for all its clients together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

QUEUED_PER_WORKER: Final = 2048
"""As many requests wait for a decode worker as SGLang 0.5.23 has it run at once, at the least."""
SESSIONS_PER_TENANT: Final = 65_536


@dataclass(frozen=True)
class GatewayLimits:
    """The limits of the gateway as a whole; None is unlimited.

    Each answer counts as a request: `n` and a list of prompts ask for several.
    `max_concurrent_requests` have not been answered. `max_queued_requests` are those of them whose
    prompts wait to be prefilled, None for QUEUED_PER_WORKER of each decode worker, and
    `max_queued_tokens` are the tokens of these prompts. A request ends `request_timeout` seconds
    after it came. `max_sessions` conversations are remembered of each tenant.
    """

    max_concurrent_requests: int | None = None
    max_queued_requests: int | None = None
    max_queued_tokens: int | None = None
    request_timeout: float | None = None
    max_sessions: int = SESSIONS_PER_TENANT

    def problems(self) -> Iterator[tuple[str, str]]:
        """The name of each limit that can be none, and what is wrong with it."""
        counts = (
            "max_concurrent_requests",
            "max_queued_requests",
            "max_queued_tokens",
            "max_sessions",
        )
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                yield name, f"is {value}, must be at least 1"
        seconds = self.request_timeout
        if seconds is not None and not 0 < seconds < float("inf"):  # "not a number" neither
            yield "request_timeout", f"is {seconds:g}, must be above 0 seconds"


DEFAULT_LIMITS: Final = GatewayLimits()
