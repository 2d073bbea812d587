"""A request of OpenAI's Responses API as the chat request that says the same.

SGLang 0.5.23 serves this API on one server, without what a pair of workers needs. Names in errors
are the API's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ps_sglang.gateway.bodies import responses_input
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
    number,
    object_of,
    one_of,
    refuse,
    shown,
    text,
)
from ps_sglang.gateway.bodies.formats import effort
from ps_sglang.gateway.errors import BadRequest

UNSUPPORTED: Final = {
    "background": "is not supported: a request ends when its client hangs up",
    "conversation": "is not supported: continue a response by `previous_response_id`",
    "prompt": "is not supported: no prompts are kept here, send `input`",
}
UNUSED: Final = (
    *("user", "safety_identifier", "max_tool_calls", "stream_options", "reasoning.summary"),
    *("text.verbosity", "include"),
)
"""Accepted, and without an effect on the answer; the docs say so."""

_INCLUDED: Final = ("reasoning.encrypted_content", "message.output_text.logprobs")
_MOST_PAIRS = 16  # OpenAI's own bounds on metadata
_LONGEST_KEY, _LONGEST_VALUE = 64, 512

# Of a chat's fields, those with the same name here, among them SGLang's and this gateway's.
SAME: Final = (
    *("model", "stream", "temperature", "top_p", "parallel_tool_calls", "top_logprobs"),
    *("frequency_penalty", "presence_penalty", "stop", "top_k", "min_p", "repetition_penalty"),
    *("chat_template_kwargs", "priority", "cache_salt", "extra_key", "session_id"),
    *("parent_session_id", "hints", "nvext", "prompt_cache_key", "prompt_cache_retention"),
    *("service_tier",),
)


def _metadata(value: Any, name: str, limits: Limits) -> Any:
    mapping(value, name, limits)
    if len(value) > _MOST_PAIRS:
        raise BadRequest(
            f"`{name}` must have at most {_MOST_PAIRS} pairs, not {len(value)}.", param=name
        )
    for key, one in value.items():
        if len(key) > _LONGEST_KEY:
            refuse(name, key, f"made of keys of at most {_LONGEST_KEY} characters")
        text(_LONGEST_VALUE)(one, f"{name}.{key}", limits)
    return value


def _included(value: Any, name: str, limits: Limits) -> Any:
    if not isinstance(value, list):
        refuse(name, value, "a list of texts")
    for place, one in enumerate(value):
        one_of(*_INCLUDED)(one, f"{name}[{place}]", limits)
    return value


def _truncation(value: Any, name: str, limits: Limits) -> Any:
    if value != "disabled":
        refuse(name, value, "'disabled': the gateway drops nothing of a conversation")
    return value


FIELDS: Table = {
    "input": anything,
    "instructions": text(),
    "max_output_tokens": integer(1, INT32_MAX),
    "stream": boolean,
    "store": boolean,
    "previous_response_id": text(256),
    "metadata": _metadata,
    "include": _included,
    "reasoning": object_of({"effort": effort}),
    "text": object_of({"format": mapping}),
    "tools": anything,
    "tool_choice": anything,
    "truncation": _truncation,
    "temperature": number(0, 2),
    "top_logprobs": integer(0, 20),
    "user": text(256),
    "safety_identifier": text(256),
}


class ResponsesRequest:
    """A checked request. `chat` is the chat to send, `own` its messages that are new.

    `fields` are the request's own, which the answer repeats. Raises BadRequest.
    """

    def __init__(self, body: Body, limits: Limits) -> None:
        for name, reason in UNSUPPORTED.items():
            if body.get(name):
                raise BadRequest(f"`{name}` {reason}.", param=name, code="unsupported_parameter")
        self.fields = checked(body, FIELDS, limits)
        self.own = responses_input.messages(self.fields.get("input"))
        self._same = {name: body[name] for name in SAME if body.get(name) is not None}
        self._added = {**_output(self.fields, limits), **_tools(self.fields)}
        self.is_stored: bool = self.fields.get("store", True)
        self.previous: str | None = self.fields.get("previous_response_id")
        """The id of the response that this one continues."""

    def chat(self, history: Sequence[Body], id: str) -> Body:
        """The chat request, behind the messages of `history`; `id` names it on the workers."""
        parts = responses_input.merged([*map(dict, history), *map(dict, self.own)])
        messages = responses_input.chat(self.fields.get("instructions"), parts)
        chat = {**self._same, **self._added, "messages": messages, "rid": id}
        if chat.get("stream"):
            chat["stream_options"] = {"include_usage": True}
        return chat

    def echo(self) -> Body:
        """What an answer repeats of its request."""
        fields = self.fields
        return {
            "instructions": fields.get("instructions"),
            "max_output_tokens": fields.get("max_output_tokens"),
            "metadata": fields.get("metadata") or {},
            "parallel_tool_calls": self._same.get("parallel_tool_calls", True),
            "previous_response_id": self.previous,
            "prompt_cache_key": self._same.get("prompt_cache_key"),
            "reasoning": {"effort": None, "summary": None, **fields.get("reasoning", {})},
            "safety_identifier": fields.get("safety_identifier"),
            "service_tier": self._same.get("service_tier", "auto"),
            "store": self.is_stored,
            "temperature": fields.get("temperature"),
            "text": {"format": {"type": "text"}, **fields.get("text", {})},
            "tool_choice": fields.get("tool_choice", "auto"),
            "tools": fields.get("tools", []),
            "top_logprobs": self._same.get("top_logprobs", 0),
            "top_p": self._same.get("top_p"),
            "truncation": "disabled",
            "user": fields.get("user"),
            "background": False,
        }


def _output(fields: Body, limits: Limits) -> Body:
    added: Body = {}
    if (most := fields.get("max_output_tokens")) is not None:
        added["max_completion_tokens"] = most
    if (wanted := (fields.get("reasoning") or {}).get("effort")) is not None:
        added["reasoning_effort"] = wanted
    if "message.output_text.logprobs" in fields.get("include", ()):
        added["logprobs"] = True
    form = (fields.get("text") or {}).get("format")
    if form is None:
        return added
    kind = one_of("text", "json_object", "json_schema")(
        form.get("type"), "text.format.type", limits
    )
    if kind == "json_schema":
        for name in ("name", "schema"):
            if form.get(name) is None:
                raise BadRequest(f"`text.format.{name}` is missing.", param="text")
        mapping(form["schema"], "text.format.schema", limits)
        schema = {name: one for name, one in form.items() if name != "type" and one is not None}
        added["response_format"] = {"type": kind, "json_schema": schema}
    elif kind == "json_object":
        added["response_format"] = {"type": kind}
    return added


def _tools(fields: Body) -> Body:
    added: Body = {}
    if (tools := fields.get("tools")) is not None:
        if not isinstance(tools, list):
            refuse("tools", tools, "a list of tools")
        added["tools"] = [_tool(one, f"tools[{place}]") for place, one in enumerate(tools)]
    choice = fields.get("tool_choice")
    if choice is None or choice in ("auto", "none", "required"):
        return added if choice is None else {**added, "tool_choice": choice}
    if not isinstance(choice, dict) or choice.get("type") != "function":
        kind = choice.get("type") if isinstance(choice, dict) else choice
        refuse("tool_choice", kind, "'auto', 'none', 'required' or a function of `tools`")
    names = [tool["function"]["name"] for tool in added.get("tools", ())]
    if choice.get("name") not in names:
        refuse("tool_choice.name", choice.get("name"), "the name of one of `tools`")
    return {**added, "tool_choice": {"type": "function", "function": {"name": choice["name"]}}}


def _tool(tool: Any, name: str) -> Body:
    if not isinstance(tool, dict):
        refuse(name, tool, "an object")
    if tool.get("type") != "function":
        raise BadRequest(
            f"`{name}` is a tool of type {shown(tool.get('type'))}, which is not supported: only "
            "functions of the client's own are.",
            param="tools",
            code="unsupported_parameter",
        )
    if not isinstance(tool.get("name"), str):
        refuse(f"{name}.name", tool.get("name"), "a text")
    known = ("name", "description", "parameters", "strict")
    function = {key: tool[key] for key in known if tool.get(key) is not None}
    return {"type": "function", "function": function}
