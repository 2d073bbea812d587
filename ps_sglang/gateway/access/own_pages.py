"""Where there are no keys: admin calls of web pages that are not the gateway's own.

Whoever calls from this machine is an admin then. So would be every page that somebody looks at
here: a browser sends a page's POST without asking first, and sends it to this machine too if the
page's own name suddenly leads here.
"""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from ps_sglang.gateway.access import rights
from ps_sglang.gateway.config import GatewayConfig
from ps_sglang.gateway.errors import GatewayError


def own_pages_only(config: GatewayConfig) -> tuple[Middleware, ...]:
    """What refuses them; none where a key is asked for, which other pages do not have.

    Pages of `cors_origins` that are listed by name may, as the user has said.
    """
    if config.api_keys is not None:
        return ()
    listed = frozenset(config.cors_origins)

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get(hdrs.ORIGIN)
        if rights.needs_admin(request) and origin not in listed:
            if origin is not None and urlsplit(origin).netloc != request.host:
                raise _refusal(f"pages of {origin!r} may not make it")
            if not _is_no_name(request.host):
                raise _refusal(
                    f"it must name this machine by its address or localhost, not {request.host!r}"
                )
        return await handler(request)

    return (check,)


def _refusal(problem: str) -> GatewayError:
    return GatewayError(
        f"This call is an admin's. As this server has no keys, {problem}.",
        status=403,
        code="origin_not_allowed",
    )


def _is_no_name(authority: str) -> bool:
    """Whether a Host header holds no name that a stranger could have given to an address."""
    try:
        host = urlsplit(f"//{authority}").hostname or ""
        if host == "localhost" or host.endswith(".localhost"):
            return True
        return bool(ip_address(host))
    except ValueError:
        return False
