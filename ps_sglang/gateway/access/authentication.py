"""Every request's principal, before any handler: by its API key, or by where it comes from."""

from __future__ import annotations

from ipaddress import ip_address

from aiohttp import web
from aiohttp.typedefs import Handler

from ps_sglang.gateway.access.principal import ANONYMOUS, ANONYMOUS_ADMIN, Principal
from ps_sglang.gateway.errors import GatewayError

PRINCIPAL = web.RequestKey("principal", Principal)


class Forbidden(GatewayError):
    """The key is a good one, but not for this."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=403, code="admin_required")


@web.middleware
async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Find out who asks. Without keys this machine's own clients may do everything."""
    request[PRINCIPAL] = ANONYMOUS_ADMIN if _is_local(request) else ANONYMOUS
    return await handler(request)


def principal_of(request: web.Request) -> Principal:
    """Who asks; every handler may rely on it."""
    return request[PRINCIPAL]


def require_admin(request: web.Request) -> Principal:
    """Who asks; raises Forbidden unless it is an admin."""
    principal = principal_of(request)
    if not principal.is_admin:
        who = f"The key {principal.name!r} is a user's" if principal.name else "You show no key"
        raise Forbidden(f"{who}, but this needs the key of an admin: ask who runs this server.")
    return principal


def _is_local(request: web.Request) -> bool:
    return request.remote is not None and ip_address(request.remote).is_loopback
