"""The routes that generate text."""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from aiohttp import hdrs, web

from ps_sglang.gateway import sse
from ps_sglang.gateway.errors import GatewayError
from ps_sglang.gateway.legs import Call
from ps_sglang.gateway.requests import GenerationRequest, Surface, parse
from ps_sglang.gateway.state import GATEWAY, Gateway
from ps_sglang.gateway.tracing import RECORD, Record

_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx must not buffer either
}


def handler(surface: Surface) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The handler of one generation route."""

    async def generate(request: web.Request) -> web.StreamResponse:
        gateway = request.app[GATEWAY]
        record = request[RECORD]
        content = await request.read()
        parsed = parse(surface, content, request.match_info.get("model"), gateway.config)
        record.decoder = parsed.decoder
        call = Call(surface, parsed.decoder, _worker_headers(request))
        with gateway.metrics.pending(parsed.decoder):
            if not parsed.stream:
                answer = await gateway.dispatcher.complete(parsed, call)
                return web.Response(body=answer, content_type="application/json")
            return await _stream(request, gateway, parsed, call)

    return generate


def _worker_headers(request: web.Request) -> dict[str, str]:
    # Workers may have been started with an API key, which then is the clients' too.
    authorization = request.headers.get(hdrs.AUTHORIZATION)
    return {} if authorization is None else {hdrs.AUTHORIZATION: authorization}


async def _stream(
    request: web.Request, gateway: Gateway, parsed: GenerationRequest, call: Call
) -> web.StreamResponse:
    record = request[RECORD]
    async with aclosing(gateway.dispatcher.stream(parsed, call)) as events:
        # An error before the first event still has a status of its own: it is raised here.
        first = await anext(events)
        gateway.metrics.first_token(parsed.decoder, time.monotonic() - record.started)
        response = web.StreamResponse(headers={**_STREAM_HEADERS, **record.headers})
        await response.prepare(request)
        await response.write(first)
        await _forward(events, response, record)
    await response.write_eof()
    return response


async def _forward(
    events: AsyncGenerator[bytes, None], response: web.StreamResponse, record: Record
) -> None:
    try:
        async for event in events:
            await response.write(event)
    except GatewayError as error:
        record.failed(error)
        await response.write(sse.event(error.payload()))
