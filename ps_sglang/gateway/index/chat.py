"""A chat as the text that the engine makes of it: the base's chat template, filled as SGLang does.

A mistake here costs routing quality, never an answer: the workers render for themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
import msgspec

from ps_sglang.gateway.config import NO_CHAT_FLAGS, ChatFlags
from ps_sglang.gateway.index.jinja_environment import chat_environment, reads_content_parts

Message = dict[str, Any]

_SPECIAL = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# What the engine reads of a message, in its order; a user's has the first two only.
_FIELDS = (
    "role",
    "content",
    "tool_call_id",
    "name",
    "phase",
    "reasoning_content",
    "tool_calls",
    "tools",
    "prefix",
)


class NoChatText(ValueError):
    """A chat has no text that is known here; the message says why."""


class ChatTemplate:
    """The base's chat template."""

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """`variables` are for all chats. Raises NoChatText if the template has an error."""
        environment = chat_environment()
        try:
            self._template = environment.from_string(source)
            # Jinja copies them for each chat, and takes long over its own kind of dict.
            self._template.globals = dict(self._template.globals)
            self._in_parts = reads_content_parts(source, environment)
        except jinja2.TemplateError as error:
            raise NoChatText(f"the chat template has an error: {error}") from error
        self._special = dict(special_tokens)
        self._defaults = dict(variables)

    @classmethod
    def load(cls, folder: Path, flags: ChatFlags = NO_CHAT_FLAGS) -> ChatTemplate:
        """The template that workers with these flags use for the tokenizer in `folder`.

        Raises NoChatText.
        """
        try:
            config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            beside = folder / "chat_template.jinja"
            source = beside.read_text(encoding="utf-8") if beside.exists() else None
        except (OSError, ValueError) as error:
            raise NoChatText(f"no chat template can be read from {folder}: {error}") from error
        if flags.template is not None:
            source = _given(flags.template)
        elif source is None:
            source = _named(config.get("chat_template"), flags.name)
        if source is None:
            raise NoChatText(f"{folder} has no chat template")
        special = {name: _content(config[name]) for name in _SPECIAL if config.get(name)}
        return cls(source, special, flags.variables)

    @classmethod
    def given(cls, template: str) -> ChatTemplate:
        """The template in the file of a `--chat-template`, by itself; raises NoChatText."""
        return cls(_given(template), {})

    def render(self, body: Mapping[str, Any]) -> tuple[str, str]:
        """The text of a chat completion's body, and what it continues of an assistant's message.

        The engine encodes the two one by one. Raises NoChatText if the template refuses the chat,
        as the engine will as well.
        """
        try:
            messages = [_message(one, self._in_parts) for one in body["messages"]]
            continued = ""
            last = messages[-1]
            if last["role"] == "assistant" and isinstance(last["content"], str):
                if body.get("continue_final_message"):
                    continued = last["content"]
                    del messages[-1]
                else:
                    messages[-1] = {"role": "user", "content": last["content"]}
            variables = {**self._special, **_variables(body, self._defaults)}
            tools = _tools(body)
            try:
                return self._fill(messages, tools, variables), continued
            except Exception:
                # Some templates take functions without their wrapper; the engine tries both, too.
                flat = [tool["function"] for tool in tools] if tools else None
                return self._fill(messages, flat, variables), continued
        except Exception as error:  # a template is a program: it can fail in every way
            raise NoChatText(f"the chat template refuses it: {error}") from error

    def _fill(
        self, messages: Sequence[Message], tools: object, variables: Mapping[str, Any]
    ) -> str:
        return self._template.render(
            messages=messages,
            tools=tools,
            documents=None,
            **{"add_generation_prompt": True, **variables},
        )


def _given(template: str) -> str:
    """The text of a `--chat-template` as the engine reads it; raises NoChatText."""
    if not template.endswith(".jinja"):
        raise NoChatText(f"--chat-template {template} is rendered inside SGLang")
    try:
        text = Path(template).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise NoChatText(f"no chat template can be read from {template}: {error}") from error
    return text.strip("\n").replace("\\n", "\n")


def _named(templates: object, name: str | None) -> str | None:
    """A tokenizer may have several templates; the engine takes the first, if no flag names one."""
    if isinstance(templates, list):
        templates = {one["name"]: one["template"] for one in templates}
    if isinstance(templates, dict):
        templates = templates.get(name) if name else next(iter(templates.values()), None)
    return templates if isinstance(templates, str) else None


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _variables(body: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What a request adds to the template's variables."""
    kwargs = body.get("chat_template_kwargs")
    variables = dict(kwargs) if isinstance(kwargs, dict) else {}
    reasoning = body.get("reasoning")
    effort, thinking = body.get("reasoning_effort"), None
    if isinstance(reasoning, dict):
        asked = reasoning.get("effort", reasoning.get("reasoning_effort"))
        effort = effort if asked is None else asked
        thinking = True if reasoning.get("enabled", reasoning.get("enable")) else None
    if effort is not None:
        thinking = effort != "none"
    if thinking is not None:
        variables.setdefault("thinking", thinking)
        variables.setdefault("enable_thinking", thinking)
    effort = variables.pop("reasoning_effort", effort)
    variables = {**defaults, **variables}
    if effort is not None:
        variables.setdefault("reasoning_effort", effort)
    return variables


def _message(source: Mapping[str, Any], in_parts: bool) -> Message:
    role = str(source["role"]).lower()
    fields = _FIELDS[:2] if role == "user" else _FIELDS
    message = {name: source[name] for name in fields if source.get(name) is not None}
    message["role"] = role
    content = message.get("content", "")
    if isinstance(content, list):
        content = _parts(content, in_parts)
        if role == "tool" and isinstance(content, list):
            content = " ".join(part["text"] for part in content)
        if in_parts:  # the engine puts a list of parts behind all other fields
            message.pop("content")
    message["content"] = content
    if role == "assistant" and message.get("tool_calls"):
        message["tool_calls"] = [_tool_call(call) for call in message["tool_calls"]]
    return message


def _parts(content: Sequence[Any], in_parts: bool) -> list[Message] | str:
    texts = [part["text"] for part in content if part.get("type") == "text"]
    return [{"type": "text", "text": text} for text in texts] if in_parts else " ".join(texts)


def _tool_call(call: Mapping[str, Any]) -> Message:
    function = call["function"]
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = msgspec.json.decode(arguments)
    return {
        "id": call.get("id"),
        "index": call.get("index"),
        "type": "function",
        "function": {"name": function.get("name"), "arguments": arguments},
    }


def _tools(body: Mapping[str, Any]) -> list[Message] | None:
    tools, choice = body.get("tools"), body.get("tool_choice")
    if not tools or choice == "none":
        return None
    if isinstance(choice, dict):
        name = choice["function"].get("name")
        tools = [tool for tool in tools if tool["function"]["name"] == name]
    return [_tool(tool) for tool in tools] or None


def _tool(tool: Mapping[str, Any]) -> Message:
    deferred = tool.get("defer_loading")
    function = {
        name: value
        for name, value in tool["function"].items()
        if name in ("description", "name", "parameters")
        or (name in ("strict", "defer_loading") and value is not None)
    }
    for name in ("description", "parameters"):
        function.setdefault(name, None)
    if deferred is not None:
        function.setdefault("defer_loading", deferred)
    return {
        "type": tool.get("type", "function"),
        "function": function,
        "defer_loading": deferred,
    }
