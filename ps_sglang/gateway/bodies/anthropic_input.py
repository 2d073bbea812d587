"""The system prompt and the messages of Anthropic's Messages API as a chat's messages."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from ps_sglang.gateway.bodies.checks import Body, refuse, shown
from ps_sglang.gateway.errors import BadRequest

# Claude Code writes it at the head of its system prompt, other in each request: behind it no
# prefix would ever be shared.
_BILLING_LINE: Final = re.compile(r"\s*x-anthropic-billing-header:[^\n]*\n?")
_NO_MEDIA: Final = "is not supported: this gateway serves text models"


def messages(body: Body) -> list[Body]:
    """What `system` and `messages` say, in order; raises BadRequest."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest(
            f"`messages` must be a list of at least one message, not {shown(messages)}.",
            param="messages",
        )
    system = _system_texts(body.get("system"), "system")
    chat: list[Body] = []
    for number, message in enumerate(messages):
        name = f"messages[{number}]"
        if not isinstance(message, dict):
            refuse(name, message, "an object")
        role = message.get("role")
        if role not in ("user", "assistant", "system"):
            refuse(f"{name}.role", role, "one of 'user', 'assistant', 'system'")
        place = f"{name}.content"
        if role == "system":  # as SGLang does: few templates have room for it further down
            system += _system_texts(message.get("content"), place)
        else:
            blocks = _blocks(message.get("content"), place)
            chat += _user(blocks, place) if role == "user" else [_assistant(blocks, place)]
    if system and (match := _BILLING_LINE.match(system[0])):
        system[0] = system[0][match.end() :]
    joined = "\n".join(filter(None, system))
    return [{"role": "system", "content": joined}, *chat] if joined else chat


def _system_texts(system: Any, name: str) -> list[str]:
    if system is None:
        return []
    blocks = _blocks(system, name)
    return [_text_of(block, f"{name}[{place}]") for place, block in enumerate(blocks)]


def _blocks(content: Any, name: str) -> list[Body]:
    """The blocks of a content, a text being one."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(one, dict) for one in content):
        refuse(name, content, "a text or a list of content blocks")
    return content


def _user(blocks: Sequence[Body], name: str) -> list[Body]:
    """A user's turn: results of tools become messages of their own, all in the given order."""
    messages: list[Body] = []
    texts: list[str] = []

    def say() -> None:
        if texts:
            messages.append({"role": "user", "content": _content(texts)})
            texts.clear()

    for place, block in enumerate(blocks):
        where = f"{name}[{place}]"
        if block.get("type") == "tool_result":
            say()
            call = block.get("tool_use_id")
            if not isinstance(call, str):
                refuse(f"{where}.tool_use_id", call, "a text")
            result = _result(block.get("content"), f"{where}.content")
            messages.append({"role": "tool", "tool_call_id": call, "content": result})
        else:
            texts.append(_text_of(block, where))
    say()
    return messages


def _result(content: Any, name: str) -> str:
    blocks = [] if content is None else _blocks(content, name)
    return "\n".join(_text_of(block, f"{name}[{place}]") for place, block in enumerate(blocks))


def _assistant(blocks: Sequence[Body], name: str) -> Body:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Body] = []
    for place, block in enumerate(blocks):
        where = f"{name}[{place}]"
        if block.get("type") == "tool_use":
            calls.append(_call(block, where))
        elif block.get("type") == "thinking":
            thought = block.get("thinking")
            if not isinstance(thought, str):
                refuse(f"{where}.thinking", thought, "a text")
            thoughts.append(thought)
        else:
            texts.append(_text_of(block, where))
    message: Body = {"role": "assistant"}
    if texts or not calls:
        message["content"] = _content(texts)
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _content(texts: Sequence[str]) -> str | list[Body]:
    if len(texts) == 1:
        return texts[0]
    return [{"type": "text", "text": text} for text in texts] or ""


def _call(block: Body, name: str) -> Body:
    for key in ("id", "name"):
        if not isinstance(block.get(key), str):
            refuse(f"{name}.{key}", block.get(key), "a text")
    arguments = block.get("input")
    if not isinstance(arguments, dict):
        refuse(f"{name}.input", arguments, "an object")
    function = {"name": block["name"], "arguments": msgspec.json.encode(arguments).decode()}
    return {"id": block["id"], "type": "function", "function": function}


def _text_of(block: Body, name: str) -> str:
    """The text that a content block stands for."""
    kind = block.get("type")
    if isinstance(kind, str) and kind in _TEXTS:
        return _TEXTS[kind](block, name)
    if kind in ("image", "document"):
        problem = _NO_MEDIA
    else:
        problem = "is not supported here; send it as a block of type `text`"
    raise BadRequest(
        f"`{name}` is a content block of type {kind!r}, which {problem}.",
        param=name.partition("[")[0],
        code="unsupported_parameter",
    )


def _plain(block: Body, name: str) -> str:
    value = block.get("text")
    if not isinstance(value, str):
        refuse(f"{name}.text", value, "a text")
    return value


def _search_result(block: Body, name: str) -> str:
    lines = [
        f"{title}: {block[key]}"
        for title, key in (("Title", "title"), ("Source", "source"))
        if isinstance(block.get(key), str)
    ]
    return "\n".join((*lines, "Content: " + _result(block.get("content"), f"{name}.content")))


_TEXTS: dict[str, Callable[[Body, str], str]] = {
    "text": _plain,
    "search_result": _search_result,
}
