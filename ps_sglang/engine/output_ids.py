"""A stream tells the gateway the ids of its output tokens, see `ps_sglang.output_ids`.

SGLang's routes make events of what its tokenizer manager gives them. The ids are noted where they
come from, and put before the next event that goes out.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

from ps_sglang.engine.access import AsgiApp, Json, Send
from ps_sglang.engine.hooking import around
from ps_sglang.output_ids import HEADER, comment

_HEADER: Final = HEADER.encode()
_UNTOLD: Final = "ps_sglang_output_ids"
"""Where an ASGI scope has the ids that no event has told yet."""


class OutputIdsInStream:
    """An ASGI middleware: requests with the header get the ids of output tokens in comments."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app

    async def __call__(
        self, scope: Json, receive: Callable[[], Awaitable[Json]], send: Send
    ) -> None:
        """Serve one connection or request."""
        if scope["type"] == "http" and any(name == _HEADER for name, _ in scope["headers"]):
            scope[_UNTOLD] = []
            send = _telling(send, scope[_UNTOLD])
        await self._app(scope, receive, send)


def _telling(send: Send, untold: list[int]) -> Send:
    async def send_with_ids(message: Json) -> None:
        # Each message of a stream is made of whole events.
        if untold and message["type"] == "http.response.body" and message.get("body"):
            message["body"] = comment(untold) + message["body"]
            untold.clear()
        await send(message)

    return send_with_ids


@around("managers.tokenizer_manager.TokenizerManager.generate_request", "self", "obj", "request")
def generate_request(
    original: Any, manager: Any, obj: Any, request: Any = None
) -> AsyncGenerator[Json, None]:
    """Around `TokenizerManager.generate_request`: note the output tokens of a stream.

    With `--incremental-streaming-output` it notes none: pieces that were merged on the way would
    not fit the ids.
    """
    answers: AsyncGenerator[Json, None] = original(manager, obj, request)
    if request is None or _UNTOLD not in request.scope or manager.incremental_streaming_output:
        return answers
    return _noting(answers, request.scope[_UNTOLD])


async def _noting(
    answers: AsyncGenerator[Json, None], untold: list[int]
) -> AsyncGenerator[Json, None]:
    """The same answers. Each has all output ids so far, perhaps of later tokens than its text."""
    noted = 0
    async with aclosing(answers):
        async for answer in answers:
            ids = answer.get("output_ids") or ()
            untold += ids[noted:]
            noted = max(noted, len(ids))
            yield answer
