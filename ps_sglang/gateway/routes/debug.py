"""POST /debug/route: where a request would go, and why; nothing is sent."""

from __future__ import annotations

from aiohttp import web

from ps_sglang.gateway.access.authentication import tenant_of
from ps_sglang.gateway.bodies.checks import Body
from ps_sglang.gateway.bodies.reading import decode_body
from ps_sglang.gateway.bodies.requests import parse
from ps_sglang.gateway.bodies.samples import Endpoint
from ps_sglang.gateway.errors import BadRequest
from ps_sglang.gateway.state import GATEWAY


async def route(request: web.Request) -> web.Response:
    """Take the body of a generation request; answer with candidates, terms and the choice.

    The route that the body is meant for follows from its prompt: `messages`, `prompt`, or else
    /generate. Of several prompts each is explained. It is taken for one of the tenant's that
    `?tenant=` names.
    """
    gateway, tenant = request.app[GATEWAY], tenant_of(request)
    content = await request.read()
    endpoint = _endpoint(decode_body(content))
    model = request.match_info.get("model")
    parsed = parse(endpoint, content, model, request.headers, gateway.served_to(tenant))
    session = gateway.sessions.of(tenant).get(parsed.session) if parsed.session else None
    decoder = gateway.pool.served(parsed.decoder)
    decisions = [
        gateway.router.decide(sample.prompt, decoder, session=session).explain()
        for sample in parsed.samples
        if sample.leads
    ]
    return web.json_response(
        {
            "route": endpoint.value,
            "decoder": parsed.decoder,
            "session": session.id if session else None,
            "decisions": decisions,
        }
    )


def _endpoint(body: Body) -> Endpoint:
    fields = [
        name for name in ("messages", "prompt", "text", "input_ids") if body.get(name) is not None
    ]
    if not fields:
        raise BadRequest("Send the body of a generation request: `messages`, `prompt` or `text`.")
    return {"messages": Endpoint.CHAT, "prompt": Endpoint.COMPLETIONS}.get(
        fields[0], Endpoint.GENERATE
    )
