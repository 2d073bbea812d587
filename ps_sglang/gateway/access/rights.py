"""Which routes need no key, and which one a user's key opens; all others need an admin's.

Each route stands here by the path that it is registered with, see `paths.registered_path`.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from ps_sglang.gateway.paths import registered_path

OPEN: Final = frozenset(
    (
        # Probes of load balancers and orchestrators, which have no keys.
        *("/health", "/liveness", "/ready", "/readiness"),
        # The same at every gateway.
        *("/docs", "/openapi.json", "/", "/page/{file}"),
    )
)
"""Routes for everybody. To whoever is no admin they tell nothing of the cluster but its health."""

FOR_USERS: Final = frozenset(
    (
        *("/v1/chat/completions", "/v1/completions", "/generate"),
        *("/v1/messages", "/v1/messages/count_tokens"),
        *("/v1/responses", "/v1/responses/{id}", "/v1/responses/{id}/cancel"),
        *("/sessions/{id}", "/sessions/{id}/end", "/abort_request"),
        *("/v1/models", "/v1/models/{name}", "/model_info", "/get_model_info"),
        *("/tokenize", "/v1/tokenize", "/detokenize", "/v1/detokenize"),
        *("/parse_function_call", "/separate_reasoning"),
        "/health_generate",
    )
)
"""Routes that tell or change nothing but what is the tenant's own."""


def is_open(request: web.Request) -> bool:
    """Whether a request is one for which nobody needs a key."""
    return registered_path(request) in OPEN


def needs_admin(request: web.Request) -> bool:
    """Whether a request is one for admins only; for a path that is none it is False."""
    path = registered_path(request)
    return path is not None and path not in OPEN and path not in FOR_USERS
