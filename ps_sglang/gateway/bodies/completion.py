"""The generated text, read from an answer: for prompts that continue it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from ps_sglang.gateway.bodies import sse
from ps_sglang.gateway.bodies.samples import Endpoint

Completion = dict[str, Any]
"""`message` of a chat, `text` of a completion, `text` and maybe `output_ids` of /generate."""


def in_answer(endpoint: Endpoint, content: bytes) -> Completion | None:
    """The completion in a whole JSON answer to one sample."""
    try:
        answer = msgspec.json.decode(content, type=Completion)
        completion = answer if endpoint is Endpoint.GENERATE else answer["choices"][0]
    except (msgspec.DecodeError, KeyError, IndexError, TypeError):
        return None
    return completion if isinstance(completion, dict) else None


class Collector:
    """Puts together the completion from the events of one sample's stream."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._texts: list[str] = []
        self._calls: dict[int, Completion] = {}
        self._last: Completion = {}

    def add(self, events: Iterable[bytes]) -> None:
        """Read the next events."""
        for event in events:
            if (chunk := sse.payload(event)) is not None:
                self._add_chunk(chunk)

    def _add_chunk(self, chunk: Completion) -> None:
        if self._endpoint is Endpoint.GENERATE:
            self._last = chunk  # each event of /generate has the whole text so far
            return
        for choice in chunk.get("choices") or ():
            if self._endpoint is Endpoint.COMPLETIONS:
                self._texts.append(choice.get("text") or "")
            else:
                self._add_delta(choice.get("delta") or {})

    def completion(self) -> Completion:
        """The completion, as `in_answer` gives it."""
        if self._endpoint is Endpoint.GENERATE:
            return self._last
        text = "".join(self._texts)
        if self._endpoint is Endpoint.COMPLETIONS:
            return {"text": text}
        calls = [self._calls[index] for index in sorted(self._calls)]
        return {"message": {"role": "assistant", "content": text, "tool_calls": calls or None}}

    def _add_delta(self, delta: Completion) -> None:
        self._texts.append(delta.get("content") or "")
        for part in delta.get("tool_calls") or ():
            call = self._calls.setdefault(
                part.get("index") or 0, {"type": "function", "function": {"arguments": ""}}
            )
            if part.get("id"):
                call["id"] = part["id"]
            function = part.get("function") or {}
            if function.get("name"):
                call["function"]["name"] = function["name"]
            call["function"]["arguments"] += function.get("arguments") or ""
