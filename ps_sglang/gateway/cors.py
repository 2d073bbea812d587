"""Requests of web pages from other origins (CORS): allowed for the origins that are configured.

A browser asks first (a preflight) whether a page may send JSON here, and hides every answer that
does not name the page's origin, errors and streams included. Without origins a preflight is
refused with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from ps_sglang.gateway.errors import GatewayError

ANY = "*"
_MAX_AGE_SECONDS = "600"
_HEADER_NAMES = re.compile(r"[\w!#$%&'*+.^`|~, \t-]+", re.ASCII)
_READABLE_HEADERS = "x-request-id, retry-after"


def allow(app: web.Application, origins: Collection[str]) -> None:
    """Let pages of these origins (`*`: of all) use `app`."""

    @web.middleware
    async def answer_preflight(request: web.Request, handler: Handler) -> web.StreamResponse:
        method = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_METHOD)
        origin = request.headers.get(hdrs.ORIGIN)
        if request.method != hdrs.METH_OPTIONS or origin is None or method is None:
            return await handler(request)
        if _allowed(origin, origins) is None:
            raise _refusal(origin, origins)
        refused = request.match_info.http_exception
        if not isinstance(refused, web.HTTPMethodNotAllowed) or method not in (
            methods := refused.allowed_methods
        ):
            return await handler(request)  # no such path, or not with this method: it says so
        asked = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS)
        headers = {
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: ", ".join(sorted(methods)),
            hdrs.ACCESS_CONTROL_MAX_AGE: _MAX_AGE_SECONDS,
        }
        if asked is not None and _HEADER_NAMES.fullmatch(asked):
            headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = asked
        return web.Response(status=204, headers=headers)

    async def name_origin(request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(headers_for(request.headers, origins))

    app.middlewares.append(answer_preflight)
    if origins:
        app.on_response_prepare.append(name_origin)


def headers_for(asked: Mapping[str, str], origins: Collection[str]) -> dict[str, str]:
    """The headers by which a browser knows whether a page may read the answer."""
    origin = asked.get(hdrs.ORIGIN)
    allowed = None if origin is None else _allowed(origin, origins)
    # A cache must not give one origin the answer to another.
    headers: dict[str, str] = {} if ANY in origins else {hdrs.VARY: hdrs.ORIGIN}
    if allowed is not None:
        headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = allowed
        headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _READABLE_HEADERS
    return headers


def _allowed(origin: str, origins: Collection[str]) -> str | None:
    if ANY in origins:
        return ANY
    return origin if origin.lower() in origins else None


def _refusal(origin: str, origins: Collection[str]) -> GatewayError:
    served = f"only to {', '.join(origins)}" if origins else "to no origin"
    return GatewayError(
        f"Pages of {origin} may not use this server, it is open {served}: start it with "
        f"--cors-origins {origin}.",
        status=403,
        code="origin_not_allowed",
    )
