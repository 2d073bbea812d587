"""A chat's answer in the words of another API: what a route needs to say it."""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

from ps_sglang.gateway.bodies.checks import Body
from ps_sglang.gateway.errors import GatewayError

ABORTED: Final = "request_aborted"
"""The code of the error with which a request ends that its client has aborted."""


class Translation(Protocol):
    """Translates the answer to one chat. An event's `type` is the event's name, too."""

    def whole(self, answer: Body) -> Body:
        """A whole answer."""
        ...

    def events(self, chunk: Body) -> list[Body]:
        """The events that a chunk of the stream brings."""
        ...

    def end(self) -> list[Body]:
        """The last events, behind the last chunk."""
        ...

    def failed(self, error: GatewayError) -> list[Body]:
        """The last events of a stream that broke off."""
        ...


def named_event(payload: Body) -> bytes:
    """A server-sent event under the name of its `type`."""
    name: bytes = payload["type"].encode()
    return b"event: " + name + b"\ndata: " + msgspec.json.encode(payload) + b"\n\n"
