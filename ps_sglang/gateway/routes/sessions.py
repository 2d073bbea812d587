"""DELETE /sessions/<id>, POST /sessions/<id>/end: a conversation is over, and all below it."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ps_sglang.gateway.access.authentication import tenant_of
from ps_sglang.gateway.errors import GatewayError
from ps_sglang.gateway.peers.messages import EndSession, Nothing
from ps_sglang.gateway.state import GATEWAY


async def end(request: web.Request) -> web.Response:
    """Abort the requests of it and of those below it, on all decoders; let their pages go first.

    An admin names the tenant of another's session with `?tenant=`.
    """
    gateway = request.app[GATEWAY]
    id = request.match_info["id"]
    tenant = tenant_of(request)
    elsewhere = await gateway.peers.ask(Nothing())  # which other processes know of
    sessions = gateway.sessions.of(tenant).tree(id)
    if not sessions:
        raise GatewayError(
            f"There is no session {id!r}: it has ended, or no request has named it.",
            status=404,
            code="session_not_found",
        )
    for session in sessions:
        elsewhere += await gateway.peers.ask(EndSession(tenant, session.id))
    aborted = await asyncio.gather(*map(gateway.hint_actions.end_session, sessions))
    workers = {worker_state.name for session in sessions for worker_state in session.visited}
    return web.json_response(
        {
            "session": id,
            "ended": [session.id for session in sessions],
            "aborted": sum(aborted) + sum(answer.count for answer in elsewhere),
            "workers": sorted(workers),
        }
    )
