"""SGLang's own routes that generate nothing: tokens, parsers, aborts, loads.

What needs the tokenizer or a parser is asked of a worker, in SGLang's own words and shapes. All
workers have the base's tokenizer, so `model` may be left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import urlencode

import msgspec
from aiohttp import web

from ps_sglang.gateway.access.authentication import tenant_of
from ps_sglang.gateway.bodies import engine_fields
from ps_sglang.gateway.bodies.anthropic_request import chat_body
from ps_sglang.gateway.bodies.checks import Body, Limits, refuse
from ps_sglang.gateway.bodies.reading import decode_body
from ps_sglang.gateway.bodies.requests import choose_decoder
from ps_sglang.gateway.dispatch.aborts import abort_by_rid
from ps_sglang.gateway.errors import (
    BadRequest,
    EngineError,
    GatewayError,
    WorkerUnreachable,
    engine_error,
)
from ps_sglang.gateway.peers.messages import AbortRid
from ps_sglang.gateway.routes.forwarding import ask, first_answer
from ps_sglang.gateway.routing.worker_state import AnyWorkerState
from ps_sglang.gateway.state import GATEWAY, model_in_path

_Handler = Callable[[web.Request], Awaitable[web.Response]]

TOKENIZE: Final = "/v1/tokenize"


def add_routes(router: web.UrlDispatcher, prefix: str) -> None:
    """Register all routes of this module, behind `prefix`."""
    for version in ("", "/v1"):
        router.add_post(prefix + version + "/tokenize", _question(TOKENIZE, _tokenize))
        router.add_post(prefix + version + "/detokenize", _question("/v1/detokenize", _detokenize))
    router.add_post(
        prefix + "/parse_function_call", _question("/parse_function_call", _function_call)
    )
    router.add_post(prefix + "/separate_reasoning", _question("/separate_reasoning", _reasoning))
    router.add_post(prefix + "/v1/messages/count_tokens", count_tokens)
    router.add_post(prefix + "/abort_request", abort_request)
    router.add_get(prefix + "/v1/loads", loads)


def _tokenize(body: Body, limits: Limits) -> Body:
    """The tokens of texts, or of a chat."""
    return engine_fields.tokenize_fields(body, limits)


def _detokenize(body: Body, limits: Limits) -> Body:
    """The text of tokens."""
    return engine_fields.plain_fields(body, limits, engine_fields.DETOKENIZE, "tokens")


def _function_call(body: Body, limits: Limits) -> Body:
    """The calls of functions in a text, by one of SGLang's parsers."""
    table = engine_fields.PARSE_FUNCTION_CALL
    return engine_fields.plain_fields(body, limits, table, "text", "tool_call_parser")


def _reasoning(body: Body, limits: Limits) -> Body:
    """A text without its reasoning, by one of SGLang's parsers."""
    table = engine_fields.SEPARATE_REASONING
    return engine_fields.plain_fields(body, limits, table, "text", "reasoning_parser")


def _question(path: str, read: Callable[[Body, Limits], Body]) -> _Handler:
    async def handle(request: web.Request) -> web.Response:
        body = decode_body(await request.read())
        return await _ask_any(request, body, path, read(body, request.app[GATEWAY].limits))

    handle.__doc__ = read.__doc__
    return handle


async def _ask_any(request: web.Request, body: Body, path: str, fields: Body) -> web.Response:
    """The answer of a worker of the decoder that `body` or the URL names, or of any."""
    gateway = request.app[GATEWAY]
    named, in_path = body.get("model"), request.match_info.get("model")
    decoder = None
    if named is not None or in_path is not None:
        decoder = choose_decoder(named, in_path, gateway.pool.decoders)
    workers = gateway.pool.decode(decoder)
    answer = await first_answer(gateway, workers, "POST", path, fields)
    if answer.status == 200:
        return answer
    assert isinstance(answer.body, bytes), "it was read as a whole"
    error = engine_error(answer.status, answer.body)
    if error.status >= 500:
        # Nothing but the body counts for the answer: SGLang has no better word for a text that a
        # parser cannot read.
        raise BadRequest(f"The worker could not do this: {error.message}") from error
    raise error


async def count_tokens(request: web.Request) -> web.Response:
    """POST /v1/messages/count_tokens: the tokens of the prompt that a message would have."""
    limits = request.app[GATEWAY].limits
    chat = chat_body(decode_body(await request.read()), limits, counting=True)
    answer = await _ask_any(request, chat, TOKENIZE, engine_fields.tokenize_fields(chat, limits))
    assert isinstance(answer.body, bytes), "it was read as a whole"
    return web.json_response({"input_tokens": msgspec.json.decode(answer.body)["count"]})


async def abort_request(request: web.Request) -> web.Response:
    """POST /abort_request: abort what the same tenant asked under this `rid`.

    As at SGLang's own server it is no error if nothing has that id, or has it no more.
    """
    gateway = request.app[GATEWAY]
    limits = gateway.limits
    body = engine_fields.plain_fields(
        decode_body(await request.read()), limits, engine_fields.ABORT
    )
    if body.get("abort_all"):
        raise BadRequest(
            "`abort_all` is not supported: it would end the requests of others. Name yours by "
            "`rid`, or end a session.",
            param="abort_all",
            code="unsupported_parameter",
        )
    rid = body.get("rid")
    if not rid:
        refuse("rid", rid, "the `rid` with which a request was sent")
    tenant = tenant_of(request)
    abort_by_rid(gateway.dispatcher, rid, tenant)
    await gateway.peers.ask(AbortRid(rid, tenant))
    return web.Response()


async def loads(request: web.Request) -> web.Response:
    """GET /v1/loads: what SGLang says of its queues and pools, by every worker that answers.

    Each of `loads` tells its worker.
    """
    gateway = request.app[GATEWAY]
    query = engine_fields.loads_query(request.query)
    path = "/v1/loads" + (f"?{urlencode(query)}" if query else "")

    async def of(worker_state: AnyWorkerState) -> Body | None:
        try:
            answer = await ask(gateway, worker_state, "GET", path)
        except WorkerUnreachable:
            return None
        assert isinstance(answer.body, bytes), "it was read as a whole"
        if answer.status != 200:
            raise engine_error(answer.status, answer.body)
        worker = worker_state.worker
        place = {"worker": worker.name, "role": worker.role, "decoder": worker.decoder}
        return _with_place(answer.body, place)

    workers = gateway.workers(model_in_path(request))
    answers = [one for one in await asyncio.gather(*map(of, workers)) if one is not None]
    if not answers:
        raise GatewayError("No worker answers.", status=503, code="no_worker")
    return web.json_response(
        {**answers[0], "loads": [load for answer in answers for load in answer["loads"]]}
    )


def _with_place(content: bytes, place: Body) -> Body:
    try:
        answer: Any = msgspec.json.decode(content)
        answer["loads"] = [{**load, **place} for load in answer["loads"]]
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise EngineError(f"{place['worker']!r} answers with no loads.", status=502) from error
    loads: Body = answer
    return loads
