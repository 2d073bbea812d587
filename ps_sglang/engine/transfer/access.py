"""What SGLang opens for a handoff asks for the cluster's key, and what it connects shows it.

That is the port of each KV manager, and the bootstrap server. There prefill ranks register, and
decode workers look them up. Each request to it carries a digest of its method, path and body with
the key, so that one that was overheard can only be repeated, which changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import requests
import zmq
from aiohttp import web

from ps_sglang.cluster_key import REQUEST_PROOF_HEADER, VARIABLE, ClusterKey, from_environment
from ps_sglang.engine import metrics
from ps_sglang.engine.compat.srt import CommonKVReceiver, bootstrap_clients
from ps_sglang.engine.hooking import after, around
from ps_sglang.engine.transfer.messages import MOST_BYTES
from ps_sglang.wires import Refusal, Refusals, as_client, as_listener, is_guarded

_REFUSED: Final = (
    "This bootstrap server is a ps_sglang cluster's, and answers its workers alone: start yours "
    f"with {VARIABLE}, the name of the file with the cluster's key."
)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def register() -> None:
    """Have the module of SGLang that asks bootstrap servers send its requests from here."""
    bootstrap_clients.requests = KeyedRequests


@around("utils.network.get_zmq_socket_on_host", "context", "socket_type", "host", "restrict_peers")
def get_zmq_socket_on_host(
    original: Callable[..., tuple[int, Any]], context: zmq.Context[Any], *args: Any, **kwargs: Any
) -> tuple[int, Any]:
    """Around `network.get_zmq_socket_on_host`: limit messages, and ask peers for the cluster's key.

    Both must be set before the socket listens. What this process connects to listens in the same
    way in another worker. That holds for SGLang's own transfer backends, too.
    """
    key = from_environment(os.environ)
    context.setsockopt(zmq.MAXMSGSIZE, MOST_BYTES)
    as_listener(context, key)
    port, socket = original(context, *args, **kwargs)
    if key is not None and not is_guarded(socket):
        raise RuntimeError("the KV transfer port would be open to all: CURVE was not taken")
    for clients in (context, CommonKVReceiver._ctx):
        as_client(clients, key)
    return port, socket


@after("disaggregation.common.conn.CommonKVBootstrapServer._setup_routes", "self")
def setup_routes(_nothing: None, server: Any) -> None:
    """After `CommonKVBootstrapServer._setup_routes`: refuse requests without the cluster's key."""
    key = from_environment(os.environ)
    if key is not None:
        server.app.middlewares.append(guard(key, Refusals("bootstrap", metrics.refused)))


def guard(key: ClusterKey, refusals: Refusals) -> Any:
    """An aiohttp middleware that lets requests through which carry their digest."""

    @web.middleware
    async def require_proof(request: web.Request, handler: Handler) -> web.StreamResponse:
        proof = request.headers.get(REQUEST_PROOF_HEADER, "")
        body = await request.read()
        if key.is_request_proof(proof, request.method, request.raw_path, body):
            return await handler(request)
        refusals.add(Refusal.UNAUTHENTICATED, f"as {request.method} without the cluster's key")
        return web.Response(status=401, text=_REFUSED)

    return require_proof


class KeyedSession(requests.Session):
    """A session of `requests` that shows the key of this process's cluster, if it has one."""

    def __init__(self) -> None:
        super().__init__()
        key = from_environment(os.environ)
        if key is not None:
            self.auth = partial(_sign, key)


def _sign(key: ClusterKey, request: Any) -> Any:
    body = request.body or b""
    content = body.encode() if isinstance(body, str) else body
    request.headers[REQUEST_PROOF_HEADER] = key.request_proof(
        request.method, request.path_url, content
    )
    return request


class KeyedRequests:
    """What SGLang's module uses of `requests`."""

    Session = KeyedSession
    adapters = requests.adapters

    @staticmethod
    def get(url: str, **options: Any) -> Any:
        """As `requests.get`."""
        return _once("GET", url, options)

    @staticmethod
    def post(url: str, **options: Any) -> Any:
        """As `requests.post`."""
        return _once("POST", url, options)

    @staticmethod
    def put(url: str, **options: Any) -> Any:
        """As `requests.put`."""
        return _once("PUT", url, options)


def _once(method: str, url: str, options: dict[str, Any]) -> Any:
    with KeyedSession() as session:
        return session.request(method, url, **options)
