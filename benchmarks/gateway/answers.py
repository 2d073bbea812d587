"""A stand-in engine's answers, in the shapes of SGLang's routes."""

from __future__ import annotations

from typing import Any

import msgspec

from benchmarks.gateway.messages import CHAT, GENERATE, Body


class Answer:
    """What an engine says, in the shape of the route."""

    def __init__(
        self, path: str, body: Body, prompt_tokens: int, cached: int, said: list[str]
    ) -> None:
        self._path, self._said = path, said
        self._head = {"id": body.rid, "created": 1, "model": body.model}
        self._usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": len(said),
            "total_tokens": prompt_tokens + len(said),
            "prompt_tokens_details": {"cached_tokens": cached},
            "reasoning_tokens": 0,
        }

    def whole(self) -> bytes:
        """The JSON answer."""
        text = "".join(self._said)
        if self._path == GENERATE:
            return msgspec.json.encode(self._native(text, {"type": "length"}))
        said = {"message": {"role": "assistant", "content": text}}
        choice = {"index": 0, "finish_reason": "length"}
        choice |= said if self._path == CHAT else {"text": text}
        kind = "chat.completion" if self._path == CHAT else "text_completion"
        return msgspec.json.encode(
            {**self._head, "object": kind, "choices": [choice], "usage": self._usage}
        )

    def opening(self) -> bytes:
        """The first event of a stream."""
        return self._chunk({"role": "assistant", "content": ""}) if self._path == CHAT else b""

    def part(self, start: int, end: int) -> bytes:
        """The event of some tokens."""
        if self._path == GENERATE:
            return _event(self._native("".join(self._said[:end]), None))
        text = "".join(self._said[start:end])
        return self._chunk({"content": text} if self._path == CHAT else text)

    def closing(self) -> bytes:
        """The last events."""
        if self._path == GENERATE:
            last = _event(self._native("".join(self._said), {"type": "length"}))
        else:
            last = self._chunk({} if self._path == CHAT else "", "length")
        return last + b"data: [DONE]\n\n"

    def _native(self, text: str, reason: Any) -> Any:
        return {"text": text, "meta_info": {**self._usage, **self._head, "finish_reason": reason}}

    def _chunk(self, said: Any, reason: str | None = None) -> bytes:
        chat = self._path == CHAT
        choice = {"index": 0, "delta" if chat else "text": said, "finish_reason": reason}
        kind = "chat.completion.chunk" if chat else "text_completion"
        return _event({**self._head, "object": kind, "choices": [choice]})


def _event(content: Any) -> bytes:
    return b"data: " + msgspec.json.encode(content) + b"\n\n"
