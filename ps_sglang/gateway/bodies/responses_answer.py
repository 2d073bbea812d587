"""A chat's answer as OpenAI's Responses API gives it, whole and in events."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from ps_sglang.gateway.bodies.checks import Body
from ps_sglang.gateway.bodies.translation import ABORTED
from ps_sglang.gateway.errors import GatewayError

_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponsesAnswer:
    """The answer to one request: a response, made of the pieces of a chat's answer.

    `echo` is what the response repeats of its request. `response` is what is known so far,
    `message` the same as a message of a chat. `ended` is called when both are whole, before the
    client hears of it.
    """

    def __init__(
        self, id: str, model: str, echo: Mapping[str, Any], ended: Callable[[], None]
    ) -> None:
        self._ended = ended
        self.response: Body = {
            "id": id,
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": model,
            "output": [],
            "usage": None,
            **echo,
        }
        self.message: Body = {"role": "assistant"}
        self._number = -1
        self._started = False
        self._open: Body | None = None  # the item that grows
        self._logprobs: list[Body] = []
        self._reason: str | None = None

    def whole(self, answer: Body) -> Body:
        """A whole answer, which is one piece."""
        for choice in answer.get("choices") or ():
            said = {"delta": choice.get("message") or {}, **choice}
            self.events({"choices": [said], "usage": answer.get("usage")})
        if (timeline := answer.get("timeline")) is not None:
            self.response["timeline"] = timeline
        self.end()
        return self.response

    def events(self, chunk: Body) -> list[Body]:
        """An item's beginning, growth and end, as the piece needs them."""
        events = [] if self._started else self._start()
        if (usage := chunk.get("usage")) is not None:
            self.response["usage"] = _usage(usage)
        if (timeline := chunk.get("timeline")) is not None:
            self.response["timeline"] = timeline
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if thought := delta.get("reasoning_content"):
                events += self._grow("reasoning", thought)
            if text := delta.get("content"):
                logprobs = (choice.get("logprobs") or {}).get("content") or []
                events += self._grow("message", text, logprobs)
            for call in delta.get("tool_calls") or ():
                events += self._call(call)
            self._reason = choice.get("finish_reason") or self._reason
        return events

    def end(self) -> list[Body]:
        """The last item's end, and the response's."""
        events = [] if self._started else self._start()
        reason = _INCOMPLETE.get(self._reason or "")
        status = "incomplete" if reason else "completed"
        events += self._close(status)
        self.response["status"] = status
        if reason:
            self.response["incomplete_details"] = {"reason": reason}
        self._ended()
        return [*events, self._event(f"response.{status}", response=self.response)]

    def failed(self, error: GatewayError) -> list[Body]:
        """The response's end where it broke off."""
        events = self._close("incomplete")
        self.response["status"] = "cancelled" if error.code == ABORTED else "failed"
        self.response["error"] = {"code": "server_error", "message": error.message}
        self._ended()
        return [*events, self._event("response.failed", response=self.response)]

    @property
    def has_started(self) -> bool:
        """Whether a client may have heard of the response."""
        return self._started

    def _event(self, kind: str, **fields: Any) -> Body:
        self._number += 1
        return {"type": kind, "sequence_number": self._number, **fields}

    def _start(self) -> list[Body]:
        self._started = True
        begun = {**self.response, "output": []}
        return [
            self._event("response.created", response=begun),
            self._event("response.in_progress", response=begun),
        ]

    @property
    def _place(self) -> Body:
        assert self._open is not None, "an item grows"
        return {"item_id": self._open["id"], "output_index": len(self.response["output"])}

    def _begin(self, item: Body) -> list[Body]:
        closed = self._close("completed")
        self._open = item
        index = len(self.response["output"])
        shown = dict(item) if item["type"] == "function_call" else {**item, "content": []}
        return [
            *closed,
            self._event("response.output_item.added", output_index=index, item=shown),
        ]

    def _grow(self, kind: str, piece: str, logprobs: list[Body] | None = None) -> list[Body]:
        """Add to the text of a message, or to a thought."""
        events: list[Body] = []
        if self._open is None or self._open["type"] != kind:
            events += self._begin(_message() if kind == "message" else _thought())
            events.append(
                self._event(
                    "response.content_part.added",
                    **self._place,
                    content_index=0,
                    part=dict(self._part),
                )
            )
            self._logprobs = []
        self._part["text"] += piece
        name = "content" if kind == "message" else "reasoning_content"
        self.message[name] = self.message.get(name, "") + piece
        more: Body = {}
        if kind == "message":
            self._logprobs += logprobs or ()
            more["logprobs"] = logprobs or []
        delta = f"response.{self._part['type']}.delta"
        events.append(self._event(delta, **self._place, content_index=0, delta=piece, **more))
        return events

    def _call(self, call: Body) -> list[Body]:
        """Begin a call, or add to its arguments."""
        events: list[Body] = []
        function = call.get("function") or {}
        if function.get("name"):  # only the first part of a call has it
            item = _function_call(call.get("id") or _id("call"), function["name"])
            events += self._begin(item)
            called = {"name": item["name"], "arguments": ""}
            made = {"id": item["call_id"], "type": "function", "function": called}
            self.message.setdefault("tool_calls", []).append(made)
        if (piece := function.get("arguments")) and self._is_call:
            assert self._open is not None
            self._open["arguments"] += piece
            self.message["tool_calls"][-1]["function"]["arguments"] += piece
            delta = "response.function_call_arguments.delta"
            events.append(self._event(delta, **self._place, delta=piece))
        return events

    @property
    def _is_call(self) -> bool:
        return self._open is not None and self._open["type"] == "function_call"

    @property
    def _part(self) -> Body:
        assert self._open is not None, "an item grows"
        part: Body = self._open["content"][0]
        return part

    def _close(self, status: str) -> list[Body]:
        item = self._open
        if item is None:
            return []
        events: list[Body] = []
        if self._is_call:
            said = {"arguments": item["arguments"], "name": item["name"]}
            done = "response.function_call_arguments.done"
            events.append(self._event(done, **self._place, **said))
        else:
            more: Body = {}
            if item["type"] == "message":
                more["logprobs"] = self._logprobs
                if self._logprobs:
                    self._part["logprobs"] = self._logprobs
            place = {**self._place, "content_index": 0}
            done = f"response.{self._part['type']}.done"
            events.append(self._event(done, **place, text=self._part["text"], **more))
            events.append(self._event("response.content_part.done", **place, part=self._part))
        item["status"] = status
        index = len(self.response["output"])
        events.append(self._event("response.output_item.done", output_index=index, item=item))
        self.response["output"].append(item)
        self._open = None
        return events


def _id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(16)}"


def response_id() -> str:
    """An id that nobody can guess, as whoever knows it may read the response."""
    return _id("resp")


def _message() -> Body:
    part = {"type": "output_text", "text": "", "annotations": []}
    return {
        "id": _id("msg"),
        "type": "message",
        "role": "assistant",
        "status": "in_progress",
        "content": [part],
    }


def _thought() -> Body:
    part = {"type": "reasoning_text", "text": ""}
    return {
        "id": _id("rs"),
        "type": "reasoning",
        "status": "in_progress",
        "summary": [],
        "content": [part],
        "encrypted_content": None,
    }


def _function_call(call_id: str, name: str) -> Body:
    return {
        "id": _id("fc"),
        "type": "function_call",
        "status": "in_progress",
        "call_id": call_id,
        "name": name,
        "arguments": "",
    }


def _usage(usage: Body) -> Body:
    details = usage.get("prompt_tokens_details") or {}
    return {
        "input_tokens": usage.get("prompt_tokens") or 0,
        "input_tokens_details": {
            "cached_tokens": details.get("cached_tokens") or 0,
            "cache_write_tokens": 0,  # nobody pays for these here
        },
        "output_tokens": usage.get("completion_tokens") or 0,
        "output_tokens_details": {"reasoning_tokens": usage.get("reasoning_tokens") or 0},
        "total_tokens": usage.get("total_tokens") or 0,
    }
