"""/workers/<name>/renew: a worker that joined with a lease is still there."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from ps_sglang.gateway.errors import BadRequest
from ps_sglang.gateway.state import GATEWAY
from ps_sglang.gateway.workers import leases


class Renewal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /workers/<name>/renew: the lease's id, as the answer to joining had it."""

    lease: str


def add_routes(app: web.Application) -> None:
    """Register all routes of this module."""
    app.router.add_post("/workers/{name}/renew", renew)


async def renew(request: web.Request) -> web.Response:
    """POST /workers/<name>/renew: its lease begins anew.

    404 `lease_unknown` asks it to join again, 410 `worker_removed` not to. `loading` in the answer
    says that its engine may be silent, as the gateway has it load weights.
    """
    gateway = request.app[GATEWAY]
    try:
        renewal = msgspec.json.decode(await request.read(), type=Renewal)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(f'The body must be {{"lease": "..."}}: {error}.') from error
    worker_state = gateway.leases.renew(request.match_info["name"], renewal.lease)
    return web.json_response(
        {
            "lease": described(renewal.lease),
            "state": worker_state.state,
            "loading": gateway.health.is_engine_busy(worker_state),
        }
    )


def described(id: str) -> dict[str, Any]:
    """A lease as its holder is told of it."""
    return {"id": id, "seconds": leases.SECONDS}
