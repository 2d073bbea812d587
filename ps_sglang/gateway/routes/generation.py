"""The routes that generate text."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager

from aiohttp import web

from ps_sglang.gateway.bodies import sse
from ps_sglang.gateway.bodies.completion import Collector, in_answer
from ps_sglang.gateway.bodies.requests import GenerationRequest, parse
from ps_sglang.gateway.bodies.samples import Endpoint
from ps_sglang.gateway.dispatch.worker_sender import RequestContext
from ps_sglang.gateway.errors import GatewayError
from ps_sglang.gateway.refusals import CONTEXT_EXCEEDED
from ps_sglang.gateway.routes.middleware import RECORD, RequestRecord
from ps_sglang.gateway.routing.sessions import Session
from ps_sglang.gateway.state import GATEWAY, Gateway, worker_headers
from ps_sglang.gateway.telemetry import trace
from ps_sglang.gateway.telemetry.trace import Trace

_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx must not buffer either
}
# The fields of a prompt; where a chat has token ids, they are it.
_PROMPTS = ("input_ids", "messages", "prompt", "text")


def handler(endpoint: Endpoint) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The handler of one generation route."""

    async def generate(request: web.Request) -> web.StreamResponse:
        gateway = request.app[GATEWAY]
        record = request[RECORD]
        content = await request.read()
        model = request.match_info.get("model")
        parsed = parse(endpoint, content, model, request.headers, gateway.served)
        record.decoder, record.rid = parsed.decoder, parsed.samples[0].rid
        session = _session(gateway, parsed)
        traces: dict[int, Trace] | None = {} if request.headers.get(trace.HEADER) == "1" else None
        context = RequestContext(
            endpoint,
            gateway.pool.served(parsed.decoder),
            worker_headers(request),
            session,
            traces=traces,
        )
        with gateway.metrics.pending(parsed.decoder), _naming_prompt(parsed):
            if not parsed.stream:
                answer = await gateway.dispatcher.complete(parsed, context)
                completion = in_answer(endpoint, answer) if parsed.hints.next else None
                gateway.hint_actions.ended(parsed, context, completion)
                if context.traces is not None:
                    answer = await trace.in_answer(endpoint, answer, context.traces)
                return web.Response(body=answer, content_type="application/json")
            return await _stream(request, gateway, parsed, context)

    return generate


@contextmanager
def _naming_prompt(parsed: GenerationRequest) -> Iterator[None]:
    """Name the field of a prompt that an engine finds too long, as the gateway's own checks do."""
    try:
        yield
    except GatewayError as error:
        if error.code == CONTEXT_EXCEEDED and error.param is None:
            body = parsed.samples[0].body
            error.param = next((name for name in _PROMPTS if body.get(name) is not None), None)
        raise


def _session(gateway: Gateway, parsed: GenerationRequest) -> Session | None:
    if parsed.session is None:
        return None
    # A conversation without a name of its client's has this turn only.
    return gateway.sessions.use(parsed.session) if parsed.named else Session(parsed.session)


async def _stream(
    request: web.Request, gateway: Gateway, parsed: GenerationRequest, context: RequestContext
) -> web.StreamResponse:
    record = request[RECORD]
    collector = Collector(parsed.endpoint) if parsed.hints.next else None
    async with aclosing(gateway.dispatcher.stream(parsed, context)) as stream:
        if context.traces is not None:
            stream = _with_traces(stream, context.endpoint, context.traces)
        # An error before the first event still has a status of its own: it is raised here.
        first = await anext(stream)
        gateway.metrics.first_token(parsed.decoder, time.monotonic() - record.started)
        response = web.StreamResponse(headers={**_STREAM_HEADERS, **record.headers})
        await response.prepare(request)
        await response.write(b"".join(first))
        if collector is not None:
            collector.add(first)
        await _forward(stream, response, record, collector)
    if record.error is None:
        gateway.hint_actions.ended(parsed, context, collector.completion() if collector else None)
    await response.write_eof()
    return response


async def _with_traces(
    stream: AsyncGenerator[list[bytes], None], endpoint: Endpoint, traces: dict[int, Trace]
) -> AsyncGenerator[list[bytes], None]:
    async for events in stream:
        if events[-1] == sse.DONE:
            if completion := events[:-1]:
                yield completion
            events = [sse.event(await trace.last_chunk(endpoint, traces)), sse.DONE]
        yield events


async def _forward(
    stream: AsyncGenerator[list[bytes], None],
    response: web.StreamResponse,
    record: RequestRecord,
    collector: Collector | None,
) -> None:
    try:
        async for events in stream:
            await response.write(b"".join(events))
            if collector is not None:
                collector.add(events)
    except GatewayError as error:
        record.failed(error)
        await response.write(sse.event(error.payload()))
