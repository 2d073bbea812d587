"""A port of their own for the routes that are for admins; without one they are on every port."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from ps_sglang.gateway.access import rights
from ps_sglang.gateway.config import GatewayConfig
from ps_sglang.gateway.errors import GatewayError
from ps_sglang.gateway.listener import client_of


def on_their_port(config: GatewayConfig) -> tuple[Middleware, ...]:
    """What keeps routes for admins off the other port, where there is one for them."""
    return () if config.admin_port is None else (_only_there,)


@web.middleware
async def _only_there(request: web.Request, handler: Handler) -> web.StreamResponse:
    if rights.needs_admin(request):
        client = client_of(request)
        if client is None or not client.is_for_admins:
            raise GatewayError(
                f"{request.path!r} is served on the port for admins only (--admin-port).",
                status=404,
                code="admin_port",
            )
    return await handler(request)
