"""A sample's stream that continues on another worker: what its client has had, and what it lacks.

The other worker puts the same output tokens out again and goes on from there. Its events come in
other pieces, as it may send several tokens at once. So they are cut by content: texts by
characters, lists by items, and what comes once by whether it has come.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from io import StringIO
from typing import Any, Final

from ps_sglang.gateway.bodies import sse
from ps_sglang.gateway.bodies.checks import Body
from ps_sglang.gateway.bodies.samples import Endpoint
from ps_sglang.gateway.errors import EngineError
from ps_sglang.output_ids import PARAM

_MOST_UNREAD: Final = 256
"""Events that are kept as they came. Most streams have fewer, and are never read."""


def resumed(endpoint: Endpoint, body: Body, output_ids: Sequence[int]) -> Body:
    """What the decode worker gets of a sample that has had these output tokens elsewhere."""
    if not output_ids:
        return body
    if endpoint is Endpoint.GENERATE:
        return {**body, "sampling_params": _with_ids(body["sampling_params"], output_ids)}
    return _with_ids(body, output_ids)


def _with_ids(params: Body, output_ids: Sequence[int]) -> Body:
    return {**params, "custom_params": {**(params.get("custom_params") or {}), PARAM: output_ids}}


class Delivered:
    """What the client has had of a sample's stream; of the next worker's it gets the rest."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._is_native = endpoint is Endpoint.GENERATE
        self._stream: _NativeStream | _OpenAIStream = (
            _NativeStream() if self._is_native else _OpenAIStream()
        )
        self._unread: list[bytes] = []
        self._goes_on = False

    def continues(self) -> None:
        """The next events are those of another worker, which begins anew."""
        self._read()
        self._goes_on = True
        self._stream.begin_again()

    def take(self, events: list[bytes]) -> list[bytes]:
        """What the client gets of the next events; none if it has had all of it.

        Raises EngineError if the other worker says something else than the client has had.
        """
        if self._goes_on:
            return [rest for event in events if (rest := self._rest(event)) is not None]
        if self._is_native:
            # Each has all that those before it had.
            self._unread = [one for one in events if one != sse.DONE][-1:] or self._unread
            return events
        self._unread += events
        if len(self._unread) > _MOST_UNREAD:
            self._read()
        return events

    def _read(self) -> None:
        for event in self._unread:
            if (chunk := sse.payload(event)) is not None:
                self._stream.cut(chunk)
        self._unread.clear()

    def _rest(self, event: bytes) -> bytes | None:
        if (chunk := sse.payload(event)) is None:
            return event  # the end
        return sse.event(chunk) if self._stream.cut(chunk) else None


class _NativeStream:
    """Events of /generate, each with the whole answer so far."""

    def __init__(self) -> None:
        self._id: object = None
        self._text = ""
        self._tokens = 0
        self._has_ended = False

    def begin_again(self) -> None:
        """Each event says by itself how far it is."""

    def cut(self, chunk: Body) -> bool:
        """Whether the chunk says more than those before; it gets their id."""
        meta = chunk.setdefault("meta_info", {})
        self._id = meta["id"] = self._id or meta.get("id")
        text, tokens = chunk.get("text") or "", meta.get("completion_tokens") or 0
        # Shorter is one that is not as far, or whose stop text was cut off.
        known = min(len(text), len(self._text))
        _require_same(text[:known], self._text[:known])
        ends = meta.get("finish_reason") is not None
        if self._has_ended or not (ends or tokens > self._tokens):
            return False
        self._text, self._tokens, self._has_ended = text, tokens, ends
        return True


class _OpenAIStream:
    """Chunks of chats and completions, each with what is new."""

    def __init__(self) -> None:
        self._head: Body = {}
        self._texts: defaultdict[Hashable, _Text] = defaultdict(_Text)
        self._items: defaultdict[Hashable, _Items] = defaultdict(_Items)

    def begin_again(self) -> None:
        """The next chunk is another stream's first one."""
        for text in self._texts.values():
            text.seen = 0
        for items in self._items.values():
            items.seen = 0

    def cut(self, chunk: Body) -> bool:
        """Leave in the chunk what those before did not say; returns whether that is anything."""
        self._head = self._head or {
            name: chunk[name] for name in ("id", "created") if name in chunk
        }
        chunk.update(self._head)
        choices = chunk.get("choices")
        if not choices:  # such as usage
            return self._is_new("closing")
        return any([self._cut_choice(choice) for choice in choices])

    def _cut_choice(self, choice: Body) -> bool:
        is_new = bool(choice.get("hidden_states"))
        if delta := choice.get("delta"):
            is_new |= self._cut_delta(delta)
        if choice.get("text"):
            choice["text"] = self._texts["text"].rest(choice["text"])
            is_new |= bool(choice["text"])
        for name in ("token_ids", "prompt_token_ids"):
            if choice.get(name):
                is_new |= self._cut_list(choice, name)
        if choice.get("logprobs"):
            logprobs = choice["logprobs"]
            names = [name for name, value in logprobs.items() if isinstance(value, list)]
            if any([self._cut_list(logprobs, name) for name in names]):
                is_new = True
            else:
                choice["logprobs"] = None
        if choice.get("finish_reason"):
            is_new |= self._is_new("finish")
        return is_new

    def _cut_delta(self, delta: Body) -> bool:
        is_new = False
        for name, value in delta.items():
            if not value:
                continue
            if name == "tool_calls":
                delta[name] = [call for call in value if self._cut_call(call)] or None
            elif name == "role":
                delta[name] = value if self._is_new(name) else None
            elif isinstance(value, str):
                delta[name] = self._texts[name].rest(value)
            is_new |= bool(delta[name])
        return is_new

    def _cut_call(self, call: Body) -> bool:
        index, function = call.get("index") or 0, call.get("function") or {}
        is_new = False
        if function.get("name"):
            is_new = self._is_new(("name", index))
            if not is_new:
                call["id"] = function["name"] = None
        if function.get("arguments"):
            function["arguments"] = self._texts["arguments", index].rest(function["arguments"])
            is_new |= bool(function["arguments"])
        return is_new

    def _cut_list(self, owner: Body, name: str) -> bool:
        owner[name] = self._items[name].rest(owner[name])
        return bool(owner[name])

    def _is_new(self, what: Hashable) -> bool:
        return bool(self._items["once", what].rest([None]))


class _Text:
    """A text that comes in pieces: what the client has had, and how far a stream has come."""

    def __init__(self) -> None:
        self.seen = 0
        self._had = StringIO()
        self._length = 0

    def rest(self, piece: str) -> str:
        """What of the stream's next piece the client has not had."""
        known = piece[: max(self._length - self.seen, 0)]
        self._had.seek(self.seen)
        _require_same(known, self._had.read(len(known)))
        new = piece[len(known) :]
        self._had.write(new)  # stands at the end, unless there is nothing to write
        self._length += len(new)
        self.seen += len(piece)
        return new


class _Items:
    """A list that comes in pieces: as `_Text`, by number only."""

    def __init__(self) -> None:
        self.seen = 0
        self._had = 0

    def rest(self, piece: list[Any]) -> list[Any]:
        """What of the stream's next piece the client has not had."""
        new = piece[max(self._had - self.seen, 0) :]
        self.seen += len(piece)
        self._had = max(self._had, self.seen)
        return new


def _require_same(said: str, had: str) -> None:
    if said != had:
        raise EngineError(
            "The worker was lost, and the one that took the stream over does not continue what "
            "it had said. Send the request again.",
            status=502,
            code="stream_lost",
        )
