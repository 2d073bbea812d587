"""The input of OpenAI's Responses API as a chat's messages, and its output as one more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from ps_sglang.gateway.bodies.checks import Body, refuse, shown
from ps_sglang.gateway.errors import BadRequest

_NO_MEDIA: Final = "is not supported: this gateway serves text models"
_MEDIA: Final = ("input_image", "input_file", "input_audio")
_ROLES: Final = ("user", "assistant", "system", "developer")


def messages(value: Any) -> list[Body]:
    """What `input` says, in order; raises BadRequest.

    What an assistant thought, said and called in one turn is one message.
    """
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        refuse("input", value, "a text or a list of items")
    return merged(_item(one, f"input[{place}]") for place, one in enumerate(value))


def merged(parts: Iterable[Body]) -> list[Body]:
    """Messages, with those of one assistant's turn brought together."""
    found: list[Body] = []
    for message in parts:
        last = found[-1] if found else None
        if last is None or not (last["role"] == message["role"] == "assistant"):
            found.append(message)
            continue
        for name in ("reasoning_content", "content"):
            texts = [one[name] for one in (last, message) if one.get(name)]
            if texts:
                last[name] = "\n".join(texts)
        if calls := [*last.get("tool_calls", ()), *message.get("tool_calls", ())]:
            last["tool_calls"] = calls
    for message in found:
        if message["role"] == "assistant" and not message.get("tool_calls"):
            message.setdefault("content", "")
    return found


def chat(instructions: str | None, parts: Sequence[Body]) -> list[Body]:
    """A chat of these messages. Templates have room for one system message, at the head."""
    system = [instructions] if instructions else []
    system += [one["content"] for one in parts if one["role"] == "system" and one["content"]]
    rest = [one for one in parts if one["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join(system)}, *rest] if system else rest


def _item(item: Any, name: str) -> Body:
    if not isinstance(item, dict):
        refuse(name, item, "an object")
    kind = item.get("type", "message")
    if kind == "message":
        return _message(item, name)
    if kind == "function_call":
        call_id, function, arguments = (
            _text(item, key, name) for key in ("call_id", "name", "arguments")
        )
        called = {"name": function, "arguments": arguments or "{}"}
        call = {"id": call_id, "type": "function", "function": called}
        return {"role": "assistant", "tool_calls": [call]}
    if kind == "function_call_output":
        call_id = _text(item, "call_id", name)
        content = _content(item.get("output"), f"{name}.output")
        return {"role": "tool", "tool_call_id": call_id, "content": content}
    if kind == "reasoning":
        return {"role": "assistant", "reasoning_content": _thought(item, name)}
    advice = "send the item itself" if kind == "item_reference" else "its tool is not here"
    raise BadRequest(
        f"`{name}` is an item of type {shown(kind)}, which is not supported: {advice}.",
        param="input",
        code="unsupported_parameter",
    )


def _message(item: Body, name: str) -> Body:
    role = item.get("role")
    if role not in _ROLES:
        refuse(f"{name}.role", role, "one of " + ", ".join(map(repr, _ROLES)))
    content = _content(item.get("content"), f"{name}.content")
    return {"role": "system" if role == "developer" else role, "content": content}


def _content(content: Any, name: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        refuse(name, content, "a text or a list of parts")
    return "\n".join(_part(one, f"{name}[{place}]") for place, one in enumerate(content))


def _part(part: Any, name: str) -> str:
    if not isinstance(part, dict):
        refuse(name, part, "an object")
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        return _text(part, "text", name)
    if kind == "refusal":
        return _text(part, "refusal", name)
    problem = _NO_MEDIA if kind in _MEDIA else "is not known"
    raise BadRequest(
        f"`{name}` is a part of type {shown(kind)}, which {problem}.",
        param="input",
        code="unsupported_parameter",
    )


def _thought(item: Body, name: str) -> str:
    for key in ("content", "summary"):
        parts = item.get(key)
        if isinstance(parts, list) and parts:
            return "\n".join(_text(one, "text", f"{name}.{key}") for one in parts)
    return ""


def _text(item: Any, key: str, name: str) -> str:
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, str):
        refuse(f"{name}.{key}", value, "a text")
    return value
