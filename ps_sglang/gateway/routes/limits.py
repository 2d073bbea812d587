"""How often a key may ask, and how long a request may take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from aiohttp import web
from aiohttp.typedefs import Handler

from ps_sglang.gateway.access.authentication import is_forwarded, principal_of
from ps_sglang.gateway.access.limiter import refuse_rate
from ps_sglang.gateway.errors import DeadlineExceeded
from ps_sglang.gateway.routes.middleware import RECORD, is_anthropic
from ps_sglang.gateway.state import GATEWAY

Deadline = Callable[[], AbstractAsyncContextManager[None]]
"""Makes blocks that raise DeadlineExceeded when a request has taken too long."""


@web.middleware
async def limit_rate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count what a key asks for: each POST, as these make somebody work.

    Its body was read by now, so that the client can send the next request on the connection.
    """
    principal = principal_of(request)
    if request.method == "POST" and not is_forwarded(request):
        rate = request.app[GATEWAY].limiter.rate(principal)
        if rate is not None:
            request[RECORD].rate_headers = (
                rate.anthropic_headers() if is_anthropic(request) else rate.openai_headers()
            )
            if rate.wait:
                raise refuse_rate(principal, rate)
    return await handler(request)


class TimeLimit:
    """In this block a request that `started` then, by the monotonic clock, must end in time.

    Raises DeadlineExceeded. It is no generator, as each request passes through it.
    """

    __slots__ = ("_limit", "_seconds", "_started")

    def __init__(self, started: float, seconds: float | None) -> None:
        self._started = started
        self._seconds = seconds
        self._limit: asyncio.Timeout | None = None

    async def __aenter__(self) -> None:
        if self._seconds is not None:
            self._limit = asyncio.timeout(self._started + self._seconds - time.monotonic())
            await self._limit.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._limit is None or self._seconds is None:
            return
        try:
            await self._limit.__aexit__(kind, error, traceback)
        except TimeoutError:  # it raises none but its own
            raise DeadlineExceeded(self._seconds) from None
