"""Where several gateway processes serve one port: what only their owner can do is passed on to it.

Workers join the owner, so it alone changes the cluster and its adapters, and knows all that there
is to show; it also keeps the stored responses. Whoever asks another process is identified there,
and served by the owner under that name.
"""

from __future__ import annotations

from typing import Final

import aiohttp
import msgspec
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from yarl import URL

from ps_sglang.gateway.access.authentication import FORWARDED_HEADER, principal_of
from ps_sglang.gateway.config import GatewayConfig
from ps_sglang.gateway.errors import RETRY_AFTER_SECONDS, GatewayError
from ps_sglang.gateway.paths import registered_path
from ps_sglang.gateway.routes.middleware import RECORD, REQUEST_ID
from ps_sglang.gateway.state import GATEWAY

OF_OWNER: Final = ("/workers", "/decoders", "/metrics", "/v1/live", "/v1/responses")
"""Routes with these paths, or below them, are the owner's."""
_OF_CONNECTION: Final = frozenset(
    (
        *("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "expect"),
        *("content-length", "content-encoding"),  # of a body that has been read
    )
)


class OwnerIsGone(GatewayError):
    """The process that could do it has died; it is started again."""

    def __init__(self) -> None:
        super().__init__(
            "The gateway process that does this is starting again. Try again in "
            f"{RETRY_AFTER_SECONDS} s.",
            status=503,
            code="no_worker",
        )

    @property
    def headers(self) -> dict[str, str]:
        """When to try again."""
        return {hdrs.RETRY_AFTER: str(RETRY_AFTER_SECONDS)}


def by_owner(config: GatewayConfig) -> tuple[Middleware, ...]:
    """What passes requests on to the owner; none where there is one process."""
    return () if config.processes == 1 else (_by_owner,)


@web.middleware
async def _by_owner(request: web.Request, handler: Handler) -> web.StreamResponse:
    path, to_owner = registered_path(request), request.app[GATEWAY].to_owner
    if path is None or to_owner is None:
        return await handler(request)
    if any(path == one or path.startswith(f"{one}/") for one in OF_OWNER):
        return await _pass_on(request, to_owner)
    return await handler(request)


async def _pass_on(request: web.Request, to_owner: aiohttp.ClientSession) -> web.StreamResponse:
    record = request[RECORD]
    record.is_passed_on = True
    headers = request.headers.copy()
    for name in {*headers}:
        if name.lower() in _OF_CONNECTION:
            headers.popall(name, None)
    headers[REQUEST_ID] = record.id
    headers[FORWARDED_HEADER] = msgspec.json.encode(principal_of(request)).decode()
    url = URL(f"http://owner{request.rel_url.raw_path_qs}", encoded=True)
    response: web.StreamResponse | None = None
    try:
        async with to_owner.request(
            request.method,
            url,
            headers=headers,
            data=await request.read(),
            allow_redirects=False,
        ) as answer:
            response = web.StreamResponse(status=answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in _OF_CONNECTION:
                    response.headers[name] = value
            response.headers.update(record.headers)
            await response.prepare(request)
            async for content in answer.content.iter_any():
                await response.write(content)
            await response.write_eof()
    except (aiohttp.ClientError, OSError) as error:
        if response is None or not response.prepared:
            raise OwnerIsGone from error
        if request.transport is not None:
            request.transport.abort()  # a stream that breaks off must not look whole
        raise ConnectionResetError("the owner has died") from error
    return response
