"""DELETE /sessions/<id>, POST /sessions/<id>/end: a conversation is over."""

from __future__ import annotations

from aiohttp import web

from ps_sglang.gateway.errors import GatewayError
from ps_sglang.gateway.state import GATEWAY


async def end(request: web.Request) -> web.Response:
    """Abort the conversation's requests on all decoders and let its pages go first."""
    gateway = request.app[GATEWAY]
    id = request.match_info["id"]
    session = gateway.sessions.get(id)
    if session is None:
        raise GatewayError(
            f"There is no session {id!r}: it has ended, or no request has named it.",
            status=404,
            code="session_not_found",
        )
    aborted = await gateway.hint_actions.end_session(session)
    workers = sorted(worker_state.name for worker_state in session.visited)
    return web.json_response({"session": id, "aborted": aborted, "workers": workers})
