"""The routes that generate text."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Final

import msgspec
from aiohttp import web

from ps_sglang.gateway.access.authentication import Forbidden, principal_of
from ps_sglang.gateway.access.limiter import Admission
from ps_sglang.gateway.bodies import sse
from ps_sglang.gateway.bodies.completion import Collector, in_answer
from ps_sglang.gateway.bodies.requests import GenerationRequest, parse
from ps_sglang.gateway.bodies.samples import Endpoint
from ps_sglang.gateway.bodies.translation import Translation, named_event
from ps_sglang.gateway.dispatch.worker_sender import RequestContext
from ps_sglang.gateway.errors import GatewayError
from ps_sglang.gateway.refusals import CONTEXT_EXCEEDED
from ps_sglang.gateway.routes.limits import Deadline, TimeLimit
from ps_sglang.gateway.routes.middleware import RECORD, RequestRecord
from ps_sglang.gateway.routing.sessions import Session
from ps_sglang.gateway.state import GATEWAY, Gateway
from ps_sglang.gateway.telemetry import trace
from ps_sglang.gateway.telemetry.trace import Trace

_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx must not buffer either
}
# The fields of a prompt; where a chat has token ids, they are it.
_PROMPTS = ("input_ids", "messages", "prompt", "text")


_CODE: Final = "custom_logit_processor"

_SUMMARIES = {
    Endpoint.CHAT: "A chat's next message, by OpenAI's API.",
    Endpoint.COMPLETIONS: "Continuations of prompts, by OpenAI's API.",
    Endpoint.GENERATE: "Continuations of prompts, by SGLang's own API.",
}


def handler(endpoint: Endpoint) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The handler of one generation route."""

    async def generate(request: web.Request) -> web.StreamResponse:
        content, model = await request.read(), request.match_info.get("model")
        served = request.app[GATEWAY].served_to(principal_of(request).tenant)
        parsed = parse(endpoint, content, model, request.headers, served)
        return await respond(request, parsed)

    generate.__doc__ = _SUMMARIES[endpoint]
    return generate


async def respond(
    request: web.Request, parsed: GenerationRequest, translation: Translation | None = None
) -> web.StreamResponse:
    """Answer a checked request, in the words of another API if there is a `translation`."""
    _require_admin_for_code(request, parsed)
    gateway = request.app[GATEWAY]
    record = request[RECORD]
    record.decoder, record.rid = parsed.decoder, parsed.samples[0].rid
    prompt_tokens = [
        round(gateway.cache_index.tokens(sample.prompt, {})) if sample.leads else 0
        for sample in parsed.samples
    ]
    with gateway.limiter.admit(principal_of(request), prompt_tokens) as admission:
        return await _admitted(request, parsed, translation, admission)


async def _admitted(
    request: web.Request,
    parsed: GenerationRequest,
    translation: Translation | None,
    admission: Admission,
) -> web.StreamResponse:
    gateway = request.app[GATEWAY]
    deadline = partial(TimeLimit, request[RECORD].started, gateway.config.limits.request_timeout)
    tenant = principal_of(request).tenant
    session = _session(gateway, tenant, parsed)
    traces: dict[int, Trace] | None = {} if request.headers.get(trace.HEADER) == "1" else None
    context = RequestContext(
        parsed.endpoint,
        gateway.pool.served(parsed.decoder),
        tenant,
        session,
        traces=traces,
        names_rid=parsed.names_rid,
        prefilled=admission.prefilled,
    )
    with gateway.metrics.pending(parsed.decoder), _naming_prompt(parsed):
        if parsed.stream:
            writer = _Writer() if translation is None else _TranslatingWriter(translation)
            return await _stream(request, gateway, parsed, context, writer, deadline)
        async with deadline():
            answer = await gateway.dispatcher.complete(parsed, context)
        completion = in_answer(parsed.endpoint, answer) if parsed.hints.next else None
        gateway.hint_actions.ended(parsed, context, completion)
        if context.traces is not None:
            answer = await trace.in_answer(parsed.endpoint, answer, context.traces)
        if translation is not None:
            answer = msgspec.json.encode(translation.whole(msgspec.json.decode(answer)))
        return web.Response(body=answer, content_type="application/json")


def _require_admin_for_code(request: web.Request, parsed: GenerationRequest) -> None:
    """Raise Forbidden if a user sends code, which engines run where `--allow-unsafe` admits it."""
    has_code = any(sample.body.get(_CODE) is not None for sample in parsed.samples)
    if has_code and not principal_of(request).is_admin:
        raise Forbidden(f"`{_CODE}` is code, which only an admin's key may send.")


class _Writer:
    """What a client gets of a stream's events: all of them, as they came."""

    def events(self, events: Iterable[bytes]) -> bytes:
        """The bytes to send for some events."""
        return b"".join(events)

    def failed(self, error: GatewayError) -> bytes:
        """The bytes that end a stream which has broken off."""
        return sse.event(error.payload())


class _TranslatingWriter(_Writer):
    """The events of another API."""

    def __init__(self, translation: Translation) -> None:
        self._translation = translation

    def events(self, events: Iterable[bytes]) -> bytes:
        said = []
        for event in events:
            if event == sse.DONE:
                said += self._translation.end()
            elif (chunk := sse.payload(event)) is not None:
                said += self._translation.events(chunk)
        return b"".join(map(named_event, said))

    def failed(self, error: GatewayError) -> bytes:
        return b"".join(map(named_event, self._translation.failed(error)))


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


def _session(gateway: Gateway, tenant: str, parsed: GenerationRequest) -> Session | None:
    if parsed.session is None:
        return None
    # A conversation without a name of its client's has this turn only.
    if not parsed.named:
        return Session(parsed.session, tenant)
    return gateway.sessions.of(tenant).use(parsed.session, parsed.ancestors)


async def _stream(
    request: web.Request,
    gateway: Gateway,
    parsed: GenerationRequest,
    context: RequestContext,
    writer: _Writer,
    deadline: Deadline,
) -> web.StreamResponse:
    record = request[RECORD]
    collector = Collector(parsed.endpoint) if parsed.hints.next else None
    async with aclosing(gateway.dispatcher.stream(parsed, context)) as stream:
        if context.traces is not None:
            stream = _with_traces(stream, context.endpoint, context.traces)
        # An error before the first event still has a status of its own: it is raised here.
        async with deadline():
            first = await anext(stream)
        gateway.metrics.first_token(parsed.decoder, time.monotonic() - record.started)
        response = web.StreamResponse(headers={**_STREAM_HEADERS, **record.headers})
        await response.prepare(request)
        await response.write(writer.events(first))
        if collector is not None:
            collector.add(first)
        await _forward(stream, response, record, collector, writer, deadline)
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
    writer: _Writer,
    deadline: Deadline,
) -> None:
    try:
        async with deadline():
            async for events in stream:
                if said := writer.events(events):
                    await response.write(said)
                if collector is not None:
                    collector.add(events)
    except GatewayError as error:
        record.failed(error)
        await response.write(writer.failed(error))
