"""A chat's answer as Anthropic's Messages API gives it: whole, streamed, or as an error."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import msgspec

from ps_sglang.gateway import ids
from ps_sglang.gateway.bodies.checks import Body
from ps_sglang.gateway.errors import GatewayError

_STOP_REASONS: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
_ERROR_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_payload(error: GatewayError, request_id: str) -> Body:
    """An error as the JSON object that Anthropic's clients expect."""
    kind = "invalid_request_error" if error.status < 500 else "api_error"
    content = {"type": _ERROR_TYPES.get(error.status, kind), "message": error.message}
    return {"type": "error", "error": content, "request_id": request_id}


class AnthropicAnswer:
    """The answer to one request for a message.

    `stops` are the client's stop sequences, `request_id` stands in errors.
    """

    def __init__(self, model: str, stops: Collection[str], request_id: str) -> None:
        self._model = model
        self._stops = stops
        self._request_id = request_id
        self._id = f"msg_{ids.unique()}"
        self._started = False
        self._open: str | None = None  # the kind of the block that streams
        self._index = 0
        self._choice: Body = {}
        self._usage: Body = {}
        self._timeline: Any = None

    def whole(self, answer: Body) -> Body:
        """A message of thinking, text and calls, in this order."""
        choice = (answer.get("choices") or [{}])[0]
        said = choice.get("message") or {}
        content: list[Body] = []
        if thought := said.get("reasoning_content"):
            content.append(_thinking(thought))
        if text := said.get("content"):
            content.append({"type": "text", "text": text})
        content += [
            _tool_use(call, _arguments(call["function"].get("arguments")))
            for call in said.get("tool_calls") or ()
        ]
        # Clients look at the first block.
        content = content or [{"type": "text", "text": ""}]
        message = {**self._message(content, answer.get("usage") or {}), **self._stop(choice)}
        if (timeline := answer.get("timeline")) is not None:
            message["timeline"] = timeline
        return message

    def events(self, chunk: Body) -> list[Body]:
        """A block's start, delta and stop, as the chunk's text, thought and calls need them."""
        self._usage = chunk.get("usage") or self._usage
        self._timeline = chunk.get("timeline", self._timeline)
        events: list[Body] = []
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            parts = self._parts(delta)
            if not self._started and (parts or choice.get("finish_reason") or self._usage):
                events.append(self._start())
            events += parts
            if choice.get("finish_reason"):
                self._choice = choice
        return events

    def end(self) -> list[Body]:
        """The stop of the last block and of the message, with all usage."""
        events = [] if self._started else [self._start()]
        events += self._close()
        delta = {"type": "message_delta", "delta": self._stop(self._choice)}
        events.append({**delta, "usage": _usage(self._usage)})
        stop: Body = {"type": "message_stop"}
        if self._timeline is not None:
            stop["timeline"] = self._timeline
        return [*events, stop]

    def failed(self, error: GatewayError) -> list[Body]:
        """An error event; the client takes it for the end."""
        return [error_payload(error, self._request_id)]

    def _message(self, content: list[Body], usage: Body) -> Body:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(usage),
        }

    def _start(self) -> Body:
        self._started = True
        usage = {**self._usage, "completion_tokens": 0}
        return {"type": "message_start", "message": self._message([], usage)}

    def _stop(self, choice: Body) -> Body:
        matched = choice.get("matched_stop")
        if isinstance(matched, str) and matched in self._stops:
            return {"stop_reason": "stop_sequence", "stop_sequence": matched}
        reason = _STOP_REASONS.get(choice.get("finish_reason") or "stop", "end_turn")
        return {"stop_reason": reason, "stop_sequence": None}

    def _parts(self, delta: Body) -> list[Body]:
        events: list[Body] = []
        if thought := delta.get("reasoning_content"):
            events += self._switch("thinking", _thinking(""))
            events.append(self._delta({"type": "thinking_delta", "thinking": thought}))
        if text := delta.get("content"):
            events += self._switch("text", {"type": "text", "text": ""})
            events.append(self._delta({"type": "text_delta", "text": text}))
        for call in delta.get("tool_calls") or ():
            function = call.get("function") or {}
            if function.get("name"):  # only the first part of a call has it
                events += [*self._close(), *self._switch("tool_use", _tool_use(call, {}))]
            if arguments := function.get("arguments"):
                events.append(self._delta({"type": "input_json_delta", "partial_json": arguments}))
        return events

    def _switch(self, kind: str, block: Body) -> list[Body]:
        """Open a block, unless one of its kind is open."""
        if self._open == kind:
            return []
        closed = self._close()
        self._open = kind
        start = {"type": "content_block_start", "index": self._index, "content_block": block}
        return [*closed, start]

    def _close(self) -> list[Body]:
        if self._open is None:
            return []
        self._open = None
        stop = {"type": "content_block_stop", "index": self._index}
        self._index += 1
        return [stop]

    def _delta(self, delta: Body) -> Body:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def _thinking(thought: str) -> Body:
    # Only Anthropic can sign; clients need the field.
    return {"type": "thinking", "thinking": thought, "signature": ""}


def _tool_use(call: Body, arguments: Body) -> Body:
    name = (call.get("function") or {}).get("name")
    id = call.get("id") or f"toolu_{ids.unique()}"
    return {"type": "tool_use", "id": id, "name": name, "input": arguments}


def _arguments(text: Any) -> Body:
    """A call's arguments; what is no JSON object goes as Anthropic's docs wrap it for models."""
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except msgspec.DecodeError:
        return {"INVALID_JSON": text}


def _usage(usage: Body) -> Body:
    """What was computed, read from caches, and generated; the first two make the prompt."""
    details = usage.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens") or 0
    return {
        "input_tokens": max((usage.get("prompt_tokens") or 0) - cached, 0),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.get("completion_tokens") or 0,
    }
