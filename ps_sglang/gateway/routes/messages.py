"""POST /v1/messages: Anthropic's Messages API."""

from __future__ import annotations

from aiohttp import web

from ps_sglang.gateway.access.authentication import principal_of
from ps_sglang.gateway.bodies.anthropic_answer import AnthropicAnswer
from ps_sglang.gateway.bodies.anthropic_request import chat_body
from ps_sglang.gateway.bodies.reading import decode_body
from ps_sglang.gateway.bodies.requests import check
from ps_sglang.gateway.bodies.samples import Endpoint
from ps_sglang.gateway.routes.generation import respond
from ps_sglang.gateway.routes.middleware import RECORD
from ps_sglang.gateway.state import GATEWAY


async def create(request: web.Request) -> web.StreamResponse:
    """A message that answers `messages`, whole or streamed."""
    served = request.app[GATEWAY].served_to(principal_of(request).tenant)
    model = request.match_info.get("model")
    chat = chat_body(decode_body(await request.read()), served.limits)
    stops = chat.get("stop") or ()
    parsed = check(Endpoint.CHAT, chat, model, request.headers, served)
    stops = (stops,) if isinstance(stops, str) else stops
    return await respond(
        request, parsed, AnthropicAnswer(parsed.decoder, stops, request[RECORD].id)
    )
