"""Who may ask a worker's server: whoever has the cluster's key, and only what a cluster needs.

SGLang's own `--api-key` stands on the command line and in the first line of the log, and leaves
`/metrics` and `/health_generate` open.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from ps_sglang.cluster_key import (
    CHALLENGE_HEADER,
    LONGEST_CHALLENGE,
    PROOF_HEADER,
    PROOF_PATH,
    VARIABLE,
    ClusterKey,
)
from ps_sglang.engine import metrics
from ps_sglang.engine.compat.srt import get_serving
from ps_sglang.engine.hooking import around
from ps_sglang.engine.settings import ALLOW_UNSAFE
from ps_sglang.wires import Refusal, Refusals

Json = dict[str, Any]
Send = Callable[[Json], Awaitable[None]]
AsgiApp = Callable[[Json, Callable[[], Awaitable[Json]], Send], Awaitable[None]]

OPEN_PATHS: Final = frozenset(("/ready",))
"""Anybody may ask whether the server is up, and whether it has the key."""
SERVED_PATHS: Final = frozenset(
    (
        "/generate", "/v1/chat/completions", "/v1/completions", "/abort_request", "/flush_cache",
        "/health", "/health_generate", "/metrics", "/server_info", "/get_server_info",
        "/model_info", "/get_model_info", "/v1/models", "/v1/loads", "/update_weights_from_disk",
        "/load_lora_adapter", "/unload_lora_adapter", "/tokenize", "/v1/tokenize", "/detokenize",
        "/v1/detokenize", "/parse_function_call", "/separate_reasoning", "/freeze_gc",
    )
)  # fmt: skip
"""What a cluster needs. SGLang's other routes run what comes in (`/update_weights_from_tensor`
unpickles it), write files, or change the engine behind the gateway's back."""


class ClusterKeyCheck:
    """An ASGI middleware: requests without the cluster's key are refused.

    `allow_unsafe` leaves all of SGLang's routes to those who have it.
    """

    def __init__(
        self, app: AsgiApp, key: ClusterKey, incarnation: str, *, allow_unsafe: bool = False
    ) -> None:
        self._app = app
        self._key = key
        self._incarnation = incarnation
        self._allow_unsafe = allow_unsafe
        self._refusals = Refusals("http", metrics.refused)

    async def __call__(
        self, scope: Json, receive: Callable[[], Awaitable[Json]], send: Send
    ) -> None:
        """Serve one connection or request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Json, receive: Callable[[], Awaitable[Json]], send: Send) -> None:
        headers = dict(scope["headers"])
        challenge = headers.get(CHALLENGE_HEADER.encode(), b"").decode("latin-1")
        if 0 < len(challenge) <= LONGEST_CHALLENGE:
            send = self._proving(send, challenge)
        if scope["path"] == PROOF_PATH:
            await _answer(send, 204)
            return
        authorization = headers.get(b"authorization", b"").decode("latin-1")
        if scope["path"] not in OPEN_PATHS:
            if not self._key.opens(authorization, self._incarnation):
                self._refusals.add(Refusal.UNAUTHENTICATED, "as a request without the key")
                await _refuse(send, 401, _UNAUTHORIZED)
                return
            if not self._allow_unsafe and scope["path"] not in SERVED_PATHS:
                await _refuse(send, 403, _closed(scope["path"]))
                return
        await self._app(scope, receive, send)

    def _proving(self, send: Send, challenge: str) -> Send:
        proof = self._key.proof(challenge, self._incarnation).encode()

        async def send_with_proof(message: Json) -> None:
            if message["type"] == "http.response.start":
                headers = (*message.get("headers", ()), (PROOF_HEADER.encode(), proof))
                message["headers"] = [*headers]
            await send(message)

        return send_with_proof


_UNAUTHORIZED: Final = (
    "This is a worker of a ps_sglang cluster, and answers to its gateway: ask that. By hand, send "
    f"`Authorization: Bearer KEY` with the text of the file that {VARIABLE} names here."
)


def _closed(path: str) -> str:
    return (
        f"A worker of a ps_sglang cluster does not serve {path}: it is no route that its gateway "
        f"needs. `ps-sglang launch --allow-unsafe` ({ALLOW_UNSAFE}=1) opens SGLang's other routes."
    )


async def _refuse(send: Send, status: int, message: str) -> None:
    kind = "authentication_error" if status == 401 else "permission_error"
    error = {"message": message, "type": kind, "param": None, "code": None}
    headers = [(b"content-type", b"application/json")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await _answer(send, status, headers, json.dumps({"error": error}).encode())


async def _answer(
    send: Send, status: int, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b""
) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [*headers]})
    await send({"type": "http.response.body", "body": body})


def guarded(app: AsgiApp, key: ClusterKey | None, incarnation: str) -> AsgiApp:
    """SGLang's application behind the cluster's key, if there is one."""
    if key is None:
        return app
    _OwnRequests.authorization = key.request_headers(incarnation)["Authorization"]
    unsafe = os.environ.get(ALLOW_UNSAFE) == "1"
    return ClusterKeyCheck(app, key, incarnation, allow_unsafe=unsafe)


class _OwnRequests:
    """What the server's requests to itself carry, once it has a key."""

    authorization: str | None = None


@around(
    "entrypoints.http_server._wait_and_warmup",
    "server_args", "launch_callback", "execute_warmup_func", "post_warmup_callback",
)  # fmt: skip
def wait_and_warmup(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Around `http_server._wait_and_warmup`: the server's requests to itself have the key.

    SGLang sends its API key with them, of which nobody else reads then.
    """
    if _OwnRequests.authorization is None:
        original(*args, **kwargs)
        return
    with get_serving().override(api_key=_OwnRequests.authorization.removeprefix("Bearer ")):
        original(*args, **kwargs)
