"""/v1/responses: OpenAI's Responses API.

A client may see its tenant's responses, an admin those of any with `?tenant=`.
"""

from __future__ import annotations

from aiohttp import web

from ps_sglang.gateway.access.authentication import principal_of, tenant_of
from ps_sglang.gateway.bodies.reading import decode_body
from ps_sglang.gateway.bodies.requests import check
from ps_sglang.gateway.bodies.responses_answer import ResponsesAnswer, response_id
from ps_sglang.gateway.bodies.responses_request import ResponsesRequest
from ps_sglang.gateway.bodies.samples import Endpoint
from ps_sglang.gateway.bodies.translation import ABORTED
from ps_sglang.gateway.dispatch.aborts import abort_by_rid
from ps_sglang.gateway.errors import BadRequest, GatewayError
from ps_sglang.gateway.routes.generation import respond
from ps_sglang.gateway.routes.response_store import ResponseStore
from ps_sglang.gateway.state import GATEWAY

RESPONSES = web.AppKey("responses", ResponseStore)


def add_routes(router: web.UrlDispatcher, prefix: str) -> None:
    """Register all routes of this module, behind `prefix`."""
    router.add_post(prefix + "/v1/responses", create)
    one = prefix + "/v1/responses/{id}"
    router.add_get(one, retrieve)
    router.add_delete(one, delete)
    router.add_post(one + "/cancel", cancel)


async def create(request: web.Request) -> web.StreamResponse:
    """POST /v1/responses: an answer, whole or streamed, to `input` behind what came before it."""
    owner, id = principal_of(request).tenant, response_id()
    served, store = request.app[GATEWAY].served_to(owner), request.app[RESPONSES]
    asked = ResponsesRequest(decode_body(await request.read()), served.limits)
    history = [] if asked.previous is None else store.history(asked.previous, owner)
    chat, model = asked.chat(history, id), request.match_info.get("model")
    parsed = check(Endpoint.CHAT, chat, model, request.headers, served)

    def ended() -> None:
        store.end(id)
        if asked.is_stored:
            store.keep(owner, answer, asked.own, asked.previous)

    answer = ResponsesAnswer(id, parsed.decoder, asked.echo(), ended)
    store.begin(id, owner, answer)
    try:
        return await respond(request, parsed, answer)
    finally:
        if store.running(id, owner) is not None and answer.has_started:
            answer.failed(GatewayError("The client hung up.", status=499, code=ABORTED))
        store.end(id)


async def retrieve(request: web.Request) -> web.Response:
    """GET /v1/responses/<id>: a stored response, or one in progress."""
    if request.query.get("stream", "false") != "false":
        raise BadRequest("`stream` is for background responses, which are not supported here.")
    content = request.app[RESPONSES].get(request.match_info["id"], tenant_of(request))
    return web.Response(body=content, content_type="application/json")


async def cancel(request: web.Request) -> web.Response:
    """POST /v1/responses/<id>/cancel: end one in progress; one that has ended stays as it is."""
    gateway, store = request.app[GATEWAY], request.app[RESPONSES]
    id, owner = request.match_info["id"], tenant_of(request)
    answer = store.running(id, owner)
    if answer is not None:
        abort_by_rid(gateway.dispatcher, id, owner)
        return web.json_response({**answer.response, "status": "cancelled"})
    return web.Response(body=store.get(id, owner), content_type="application/json")


async def delete(request: web.Request) -> web.Response:
    """DELETE /v1/responses/<id>: it is forgotten."""
    id = request.match_info["id"]
    request.app[RESPONSES].delete(id, tenant_of(request))
    return web.json_response({"id": id, "object": "response", "deleted": True})
