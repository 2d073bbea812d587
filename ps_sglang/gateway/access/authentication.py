"""Every request's principal, before any handler: by its API key, or by where it comes from."""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from multidict import CIMultiDictProxy

from ps_sglang.gateway.access import rights
from ps_sglang.gateway.access.api_keys import ApiKeys
from ps_sglang.gateway.access.principal import ANONYMOUS, ANONYMOUS_ADMIN, Principal
from ps_sglang.gateway.config import GatewayConfig
from ps_sglang.gateway.errors import GatewayError

PRINCIPAL = web.RequestKey("principal", Principal)
FORWARDED_HEADER: Final = "x-ps-sglang-principal"
"""Who asks, on a request that one gateway process passes on to another."""
_KEY_HEADERS: Final = ("x-api-key", "api-key")
"""How Anthropic's and Azure's clients send a key; all others send a bearer token."""


class Unauthorized(GatewayError):
    """There is no key, or it is none of this server's."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=401, code="invalid_api_key")

    @property
    def headers(self) -> dict[str, str]:
        """How to send a key."""
        return {hdrs.WWW_AUTHENTICATE: "Bearer"}


class Forbidden(GatewayError):
    """The key is a good one, but not for this."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=403, code="admin_required")


def authentication(config: GatewayConfig) -> Middleware:
    """What finds out who asks, and lets nobody do what only an admin may.

    Raises UsageError if the file of keys is wrong.
    """
    identify: Callable[[web.Request], Principal] = _identify_by_place
    if config.api_keys is not None:
        keys = ApiKeys(Path(config.api_keys), config.launcher_key)
        identify = _by_key(keys)

    several = config.processes > 1

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        forwarded = _forwarded(request) if several else None
        request[PRINCIPAL] = forwarded or identify(request)
        if rights.needs_admin(request):
            require_admin(request)
        return await handler(request)

    return authenticate


def principal_of(request: web.Request) -> Principal:
    """Who asks; every handler may rely on it."""
    return request[PRINCIPAL]


def is_forwarded(request: web.Request) -> bool:
    """Whether another gateway process has passed the request on: it came by a Unix socket."""
    if request.transport is None:
        return False
    own = request.transport.get_extra_info("socket")
    return own is not None and own.family == socket.AF_UNIX


def _forwarded(request: web.Request) -> Principal | None:
    """Whom the process that has passed it on has found to ask."""
    if not is_forwarded(request):
        return None
    principal = request.headers.get(FORWARDED_HEADER)
    if principal is None:  # the launcher's probe
        return ANONYMOUS
    return msgspec.json.decode(principal, type=Principal)


def require_admin(request: web.Request) -> Principal:
    """Who asks; raises Forbidden unless it is an admin."""
    principal = principal_of(request)
    if principal.is_admin:
        return principal
    if principal.name:
        raise Forbidden(
            f"The key {principal.name!r} is a user's, but this needs an admin's: ask who runs this "
            "server."
        )
    raise Forbidden(
        "This server has no keys, so it takes this only from its own machine: ask who runs it."
    )


def tenant_of(request: web.Request) -> str:
    """Whose things a request is about: its own tenant's, or with `?tenant=NAME` another's.

    Raises Forbidden where that is asked by a user.
    """
    own = principal_of(request).tenant
    tenant = request.query.get("tenant", own)
    if tenant != own:
        require_admin(request)
    return tenant


def key_in(headers: CIMultiDictProxy[str]) -> str | None:
    """The key that a client sends, None for none; raises Unauthorized for two that differ."""
    keys = {
        key.strip()
        for value in headers.getall(hdrs.AUTHORIZATION, ())
        for scheme, _, key in (value.strip().partition(" "),)
        if scheme.lower() == "bearer"
    }
    keys.update(value.strip() for name in _KEY_HEADERS for value in headers.getall(name, ()))
    keys.discard("")
    if len(keys) > 1:
        raise Unauthorized("The request has two API keys, and they differ: send one of them.")
    return next(iter(keys), None)


def _by_key(keys: ApiKeys) -> Callable[[web.Request], Principal]:
    def identify(request: web.Request) -> Principal:
        key = key_in(request.headers)
        principal = None if key is None else keys.find(key)
        if principal is not None:
            return principal
        if rights.is_open(request):
            return ANONYMOUS
        if key is None:
            raise Unauthorized(
                "There is no API key: send one of this server's as `Authorization: Bearer KEY`, or "
                "in the header `x-api-key` or `api-key`."
            )
        raise Unauthorized("The API key is none of this server's, or was revoked.")

    return identify


def _identify_by_place(request: web.Request) -> Principal:
    """Without keys this machine's own clients may do everything, others what users may.

    What they send as a key does not count: many clients need one, and have a word for it.
    """
    return ANONYMOUS_ADMIN if _is_of_this_machine(request) else ANONYMOUS


def _is_of_this_machine(request: web.Request) -> bool:
    if request.remote is None:
        return False
    if ip_address(request.remote.partition("%")[0]).is_loopback:
        return True
    # Who calls the machine's address from the machine itself comes from that address.
    if request.transport is None:
        return False
    own = request.transport.get_extra_info("sockname")
    return own is not None and own[0] == request.remote
