"""The responses that clients may read again or continue: the newest ones, within bounds."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from ps_sglang.gateway.bodies.checks import Body
from ps_sglang.gateway.bodies.responses_answer import ResponsesAnswer
from ps_sglang.gateway.errors import GatewayError

MOST: Final = 10_000
MOST_BYTES: Final = 2**28
_CONTINUABLE: Final = ("completed", "incomplete")


@dataclass(frozen=True)
class _Kept:
    """A response as JSON, and its own turn's messages, input and output, as JSON."""

    owner: str
    response: bytes
    messages: bytes
    previous: str | None
    status: str

    @property
    def size(self) -> int:
        return len(self.response) + len(self.messages)


class ResponseStore:
    """Responses by id, the least used first; each is for the owner alone who asked for it.

    Where there are more than `most`, or their JSON has more than `most_bytes`, the least used go.
    """

    def __init__(self, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._bytes = 0
        self._running: dict[str, tuple[str, ResponsesAnswer]] = {}

    def begin(self, id: str, owner: str, answer: ResponsesAnswer) -> None:
        """A response is being made; `end` must follow."""
        self._running[id] = owner, answer

    def end(self, id: str) -> None:
        """It is being made no more."""
        self._running.pop(id, None)

    def keep(
        self, owner: str, answer: ResponsesAnswer, inputs: list[Body], previous: str | None
    ) -> None:
        """Keep a response that has ended, with the `inputs` of its turn as chat messages."""
        response = answer.response
        messages = [*inputs, answer.message]
        kept = _Kept(
            owner,
            msgspec.json.encode(response),
            msgspec.json.encode(messages),
            previous,
            response["status"],
        )
        self._kept[response["id"]] = kept
        self._bytes += kept.size
        while len(self._kept) > self._most or self._bytes > self._most_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.size

    def get(self, id: str, owner: str) -> bytes:
        """The response as JSON, in whatever state; raises GatewayError."""
        if (answer := self.running(id, owner)) is not None:
            return msgspec.json.encode(answer.response)
        kept = self._find(id, owner)
        self._kept.move_to_end(id)
        return kept.response

    def running(self, id: str, owner: str) -> ResponsesAnswer | None:
        """The answer that is being made, if it is."""
        whose, answer = self._running.get(id, (None, None))
        return answer if whose == owner else None

    def delete(self, id: str, owner: str) -> None:
        """Forget a response; raises GatewayError if there is none, or it is being made."""
        if self.running(id, owner) is not None:
            raise GatewayError(f"The response {id!r} is in progress: cancel it first.", status=400)
        self._bytes -= self._find(id, owner).size
        del self._kept[id]

    def history(self, id: str, owner: str) -> list[Body]:
        """The messages of the conversation up to and with a response; raises GatewayError."""
        if self.running(id, owner) is not None:
            raise _not_continuable(id, "in progress")
        turns: list[bytes] = []
        following: str | None = id
        while following is not None:
            kept = self._kept.get(following)
            if kept is None or kept.owner != owner:
                raise _lost_previous(id, following)
            if kept.status not in _CONTINUABLE:
                raise _not_continuable(following, kept.status)
            self._kept.move_to_end(following)  # the first turn last: without it the rest is lost
            turns.append(kept.messages)
            following = kept.previous
        decoded: list[list[Any]] = [msgspec.json.decode(one) for one in reversed(turns)]
        return [message for turn in decoded for message in turn]

    def _find(self, id: str, owner: str) -> _Kept:
        kept = self._kept.get(id)
        if kept is None or kept.owner != owner:
            raise GatewayError(
                f"There is no response {id!r}: it was not stored, or newer ones took its place.",
                status=404,
                param="response_id",
                code="response_not_found",
            )
        return kept


def _lost_previous(id: str, lost: str) -> GatewayError:
    where = "" if lost == id else f", which {id!r} continues"
    return GatewayError(
        f"There is no response {lost!r}{where}: it was not stored, or newer ones took its place. "
        "Send the whole conversation in `input`.",
        status=404,
        param="previous_response_id",
        code="previous_response_not_found",
    )


def _not_continuable(id: str, status: str) -> GatewayError:
    return GatewayError(
        f"The response {id!r} cannot be continued: it is {status}.",
        status=400,
        param="previous_response_id",
    )
