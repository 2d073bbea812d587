"""How often a key may ask, and how long a request may take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from aiohttp import web
from aiohttp.typedefs import Handler

from ps_sglang.gateway.access.authentication import principal_of
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
    if request.method == "POST":
        rate = request.app[GATEWAY].limiter.rate(principal)
        if rate is not None:
            request[RECORD].rate_headers = (
                rate.anthropic_headers() if is_anthropic(request) else rate.openai_headers()
            )
            if rate.wait:
                raise refuse_rate(principal, rate)
    return await handler(request)


@asynccontextmanager
async def within(started: float, seconds: float | None) -> AsyncIterator[None]:
    """In this block a request that `started` then, by the monotonic clock, must end in time.

    Raises DeadlineExceeded.
    """
    if seconds is None:
        yield
        return
    limit = asyncio.timeout(started + seconds - time.monotonic())
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceeded(seconds) from None
