"""A request of Anthropic's Messages API as the chat request that says the same.

SGLang 0.5.23 has such a route of its own, which drops the tenant's salt, the session and the
priority. So the gateway translates, and only chats reach the workers. Names in errors are
Anthropic's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from ps_sglang.gateway.bodies.checks import (
    INT32_MAX,
    Body,
    Limits,
    Table,
    anything,
    boolean,
    checked,
    integer,
    mapping,
    object_of,
    one_of,
    refuse,
    shown,
    text,
    texts,
)
from ps_sglang.gateway.bodies.formats import effort
from ps_sglang.gateway.errors import BadRequest

# Claude Code writes it at the head of its system prompt, other in each request: behind it no
# prefix would ever be shared.
_BILLING_LINE: Final = re.compile(r"\s*x-anthropic-billing-header:[^\n]*\n?")

_NO_MEDIA = "is not supported: this gateway serves text models"
_NO_SERVER = "is not supported: tools of Anthropic's own servers are not here"
_NO_STATE = "is not supported: send the whole conversation in `messages`"
UNSUPPORTED: Final = {
    "container": _NO_SERVER,
    "mcp_servers": _NO_SERVER,
    "user_profile_id": _NO_STATE,
}
UNUSED: Final = (
    *("metadata", "betas", "context_management", "inference_geo", "speed"),
    *("thinking.budget_tokens", "thinking.display", "output_config.task_budget"),
)
"""Accepted, and without an effect here; the docs say so."""

# Of a chat's fields, those that a client may add to Anthropic's.
_EXTENSIONS: Final = (
    *("cache_salt", "extra_key", "rid", "priority", "chat_template_kwargs"),
    *("hints", "session_id", "parent_session_id", "prompt_cache_key", "nvext"),
)

_TOOL_CHOICE: Table = {
    "type": one_of("auto", "any", "tool", "none"),
    "name": text(),
    "disable_parallel_tool_use": boolean,
}
_FIELDS: Table = {
    "model": anything,
    "max_tokens": integer(1, INT32_MAX),
    "system": anything,
    "stream": boolean,
    # SGLang's own bounds on stop texts.
    "stop_sequences": texts(32, text(1024)),
    "temperature": anything,
    "top_p": anything,
    "top_k": anything,
    "tools": anything,
    "tool_choice": object_of(_TOOL_CHOICE),
    "thinking": object_of({"type": one_of("enabled", "disabled", "adaptive")}),
    "output_config": object_of({"effort": effort, "format": mapping}),
    "service_tier": one_of("auto", "standard_only"),
}
# Names that chats have, too.
_SAME: Final = ("model", "stream", "temperature", "top_p", "top_k", *_EXTENSIONS)


def chat_body(body: Body, limits: Limits, *, counting: bool = False) -> Body:
    """The chat request that `body` asks for; raises BadRequest.

    `counting`: it is to be counted only, and says nothing of the answer.
    """
    for name, reason in UNSUPPORTED.items():
        if body.get(name):
            raise BadRequest(f"`{name}` {reason}.", param=name, code="unsupported_parameter")
    fields = checked(body, _FIELDS, limits)
    if not counting and "max_tokens" not in fields:
        raise BadRequest("`max_tokens` is missing.", param="max_tokens")
    chat: Body = {name: body[name] for name in _SAME if body.get(name) is not None}
    chat["messages"] = _messages(body)
    if not counting:
        chat["max_tokens"] = fields["max_tokens"]
    if (stops := fields.get("stop_sequences")) is not None:
        chat["stop"] = stops
    if fields.get("stream"):
        # The first event of an Anthropic stream has the prompt's usage.
        chat["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    _add_thinking(fields, chat)
    _add_output(fields, chat, limits)
    _add_tools(fields, chat)
    return chat


def _add_thinking(fields: Body, chat: Body) -> None:
    thinking = (fields.get("thinking") or {}).get("type")
    if thinking is not None:
        # Chat templates know this switch by two names.
        switch = dict.fromkeys(("thinking", "enable_thinking"), thinking != "disabled")
        chat["chat_template_kwargs"] = {**switch, **_object(chat, "chat_template_kwargs")}


def _add_output(fields: Body, chat: Body, limits: Limits) -> None:
    config = fields.get("output_config") or {}
    if config.get("effort") is not None:
        chat["reasoning_effort"] = config["effort"]
    if (form := config.get("format")) is not None:
        name = "output_config.format"
        one_of("json_schema")(form.get("type"), f"{name}.type", limits)
        mapping(form.get("schema"), f"{name}.schema", limits)
        schema = {"name": "response", "schema": form["schema"], "strict": True}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}


def _add_tools(fields: Body, chat: Body) -> None:
    if (tools := fields.get("tools")) is not None:
        if not isinstance(tools, list):
            refuse("tools", tools, "a list of tools")
        chat["tools"] = [_tool(one, f"tools[{place}]") for place, one in enumerate(tools)]
    choice = fields.get("tool_choice")
    if choice is None or not chat.get("tools"):
        if choice is not None and choice.get("type") in ("any", "tool"):
            raise BadRequest("`tool_choice` asks for a tool, but `tools` has none.", param="tools")
        return
    if choice.get("disable_parallel_tool_use"):
        chat["parallel_tool_calls"] = False
    names = [tool["function"]["name"] for tool in chat["tools"]]
    if choice.get("type") != "tool":
        chat["tool_choice"] = {"any": "required", "none": "none"}.get(choice.get("type"), "auto")
    elif choice.get("name") in names:
        function = {"name": choice["name"]}
        chat["tool_choice"] = {"type": "function", "function": function}
    else:
        refuse("tool_choice.name", choice.get("name"), f"one of {', '.join(map(repr, names))}")


def _tool(tool: Any, name: str) -> Body:
    if not isinstance(tool, dict):
        refuse(name, tool, "an object")
    if tool.get("type") not in (None, "custom"):
        raise BadRequest(
            f"`{name}` is Anthropic's tool {tool['type']!r}, which {_NO_SERVER}: describe it by a "
            "`name` and an `input_schema` of your own.",
            param="tools",
            code="unsupported_parameter",
        )
    if not isinstance(tool.get("name"), str):
        refuse(f"{name}.name", tool.get("name"), "a text")
    schema = tool.get("input_schema")
    if not isinstance(schema, dict):
        refuse(f"{name}.input_schema", schema, "a JSON schema, which is an object")
    function = {
        "name": tool["name"],
        "description": tool.get("description") or "",
        "parameters": schema if "type" in schema else {**schema, "type": "object"},
        "strict": bool(tool.get("strict")),
    }
    return {"type": "function", "function": function}


def _messages(body: Body) -> list[Body]:
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


def _object(body: Body, name: str) -> Body:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        refuse(name, value, "an object")
    return value
