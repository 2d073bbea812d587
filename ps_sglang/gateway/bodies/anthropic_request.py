"""A request of Anthropic's Messages API as the chat request that says the same.

SGLang 0.5.23 has such a route of its own, which drops the tenant's salt, the session and the
priority. So the gateway translates, and only chats reach the workers. Names in errors are
Anthropic's.
"""

from __future__ import annotations

from typing import Any, Final

from ps_sglang.gateway.bodies import anthropic_input
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
    text,
    texts,
)
from ps_sglang.gateway.bodies.formats import effort
from ps_sglang.gateway.bodies.others_hints import cache_lifetime
from ps_sglang.gateway.errors import BadRequest

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
FIELDS: Table = {
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
SAME: Final = ("model", "stream", "temperature", "top_p", "top_k", *_EXTENSIONS)


def chat_body(body: Body, limits: Limits, *, counting: bool = False) -> Body:
    """The chat request that `body` asks for; raises BadRequest.

    `counting`: it is to be counted only, and says nothing of the answer.
    """
    for name, reason in UNSUPPORTED.items():
        if body.get(name):
            raise BadRequest(f"`{name}` {reason}.", param=name, code="unsupported_parameter")
    fields = checked(body, FIELDS, limits)
    if not counting and "max_tokens" not in fields:
        raise BadRequest("`max_tokens` is missing.", param="max_tokens")
    chat: Body = {name: body[name] for name in SAME if body.get(name) is not None}
    chat["messages"] = anthropic_input.messages(body)
    if not counting:
        chat["max_tokens"] = fields["max_tokens"]
    if (stops := fields.get("stop_sequences")) is not None:
        chat["stop"] = stops
    if fields.get("stream"):
        # The first event of an Anthropic stream has the prompt's usage.
        chat["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    if (seconds := cache_lifetime(body)) is not None:
        chat["cache_control"] = {"ttl": "1h" if seconds > 300 else "5m"}
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


def _object(body: Body, name: str) -> Body:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        refuse(name, value, "an object")
    return value
