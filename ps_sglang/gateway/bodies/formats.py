"""Checks of the fields that shape a prompt or an answer: templates, tools, grammars."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from typing import Any

import msgspec

from ps_sglang.gateway.bodies.checks import (
    Body,
    Check,
    Limits,
    Table,
    anything,
    boolean,
    mapping,
    number,
    object_of,
    one_of,
    refuse,
    text,
)
from ps_sglang.gateway.bodies.schemas import describe, object_schema
from ps_sglang.gateway.errors import BadRequest

LONGEST_GRAMMAR = 2**18
"""Characters of a schema, an EBNF or a structural tag; of a regular expression, LONGEST_REGEX."""
LONGEST_REGEX = 2**12
_MOST_STOP_REGEX_BYTES = 256  # SGLang's own bound

_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "ultra", "max")
# What the chat template is filled by the engine, and what the engine passes to it itself.
_TEMPLATES_OWN = frozenset(
    (
        *("self", "conversation", "conversations", "messages", "tools", "documents"),
        *("add_generation_prompt", "continue_final_message", "chat_template", "tokenize"),
        *("padding", "truncation", "max_length", "return_tensors", "return_dict"),
        *("return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs"),
        *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token"),
        *("mask_token", "raise_exception", "strftime_now", "range", "dict", "lipsum", "cycler"),
        *("joiner", "namespace", "loop"),
    )
)
_GRAMMARS = ("json_schema", "regex", "ebnf", "structural_tag")


@describe({"type": "object"})
def template_kwargs(value: Any, name: str, limits: Limits) -> Any:
    """Variables for the chat template, under names that are not taken."""
    mapping(value, name, limits)
    if taken := sorted(_TEMPLATES_OWN.intersection(value)):
        raise BadRequest(
            f"`{name}` must not set {', '.join(map(repr, taken))}: the chat template is given "
            "these by the engine.",
            param=name,
        )
    if value.get("spaces_between_special_tokens") is not None:
        boolean(
            value["spaces_between_special_tokens"], f"{name}.spaces_between_special_tokens", limits
        )
    return {key: one for key, one in value.items() if one is not None}


@describe({"anyOf": [{"enum": list(_EFFORTS)}, {"type": "number", "minimum": 0, "maximum": 0.99}]})
def effort(value: Any, name: str, limits: Limits) -> Any:
    """How much to reason: a word, or a number below 1."""
    if isinstance(value, str):
        return one_of(*_EFFORTS)(value, name, limits)
    return number(0, 0.99)(value, name, limits)


@describe({"type": ["boolean", "string"]})
def enabled(value: Any, name: str, limits: Limits) -> Any:
    """A switch of `reasoning`: SGLang takes words for it as well."""
    if not isinstance(value, bool | str):
        refuse(name, value, "true or false")
    return value


_FUNCTION: Table = {
    "name": text(),
    "description": text(),
    "parameters": anything,
    "strict": boolean,
    "defer_loading": boolean,
}
_TOOL: Table = {"type": text(), "function": object_of(_FUNCTION), "defer_loading": boolean}


_TOOL_SCHEMA = object_schema(
    _TOOL, {"function": object_schema(_FUNCTION, needed=("name",))}, needed=("function",)
)


@describe({"type": "array", "items": _TOOL_SCHEMA})
def tools(value: Any, name: str, limits: Limits) -> Any:
    """A list of functions that the model may call."""
    if not isinstance(value, list):
        refuse(name, value, "a list of tools")
    for place, one in enumerate(value):
        where = f"{name}[{place}]"
        object_of(_TOOL)(one, where, limits)
        function = one.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRequest(
                f"`{where}.function` must be an object with a `name`, not "
                f"{msgspec.json.encode(function)[:64].decode(errors='replace')}.",
                param=name,
            )
    return value


@describe(
    {
        "anyOf": [
            {"enum": ["none", "auto", "required"]},
            object_schema(
                {"function": anything},
                {"function": object_schema({"name": text()}, needed=("name",))},
                needed=("function",),
            ),
        ]
    }
)
def tool_choice(value: Any, name: str, limits: Limits) -> Any:
    """Whether tools may or must be called, or which."""
    if isinstance(value, str):
        return one_of("none", "auto", "required")(value, name, limits)
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        refuse(name, value, "a word or an object with `function` and its `name`")
    return value


@describe({"type": "string"})
def schema_text(value: Any, name: str, limits: Limits) -> Any:
    """A JSON schema, written as a text."""
    text(LONGEST_GRAMMAR)(value, name, limits)
    # SGLang's word for any JSON.
    if value in ("", "$$ANY$$"):
        return value
    try:
        schema = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRequest(
            f"`{name}` must be a JSON schema as a text: {error}.", param=name
        ) from error
    if not isinstance(schema, dict | bool):
        refuse(name, value, "a JSON schema, which is an object, as a text")
    return value


@describe({"type": "string"})
def structural_tag_text(value: Any, name: str, limits: Limits) -> Any:
    """A structural tag, written as a text."""
    text(LONGEST_GRAMMAR)(value, name, limits)
    if value:
        try:
            tag = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"`{name}` must be JSON as a text: {error}.", param=name) from error
        _structural_tag(tag, name, limits)
    return value


_JSON_SCHEMA: Table = {
    "name": text(),
    "description": text(),
    "schema": mapping,
    "strict": boolean,
}


@describe(
    object_schema(
        {"type": one_of("text", "json_object", "json_schema", "structural_tag")}, needed=("type",)
    )
)
def response_format(value: Any, name: str, limits: Limits) -> Any:
    """OpenAI's `response_format`, and SGLang's structural tags."""
    mapping(value, name, limits)
    kind = one_of("text", "json_object", "json_schema", "structural_tag")(
        value.get("type"), f"{name}.type", limits
    )
    if kind == "structural_tag":
        _structural_tag(value, name, limits)
    elif kind == "json_schema":
        _json_schema(value, name, limits)
    if len(msgspec.json.encode(value)) > LONGEST_GRAMMAR:
        raise BadRequest(f"`{name}` must have at most {LONGEST_GRAMMAR} bytes.", param=name)
    return {key: one for key, one in value.items() if one is not None}


def _json_schema(value: Body, name: str, limits: Limits) -> None:
    # A chat may have the schema itself beside the type.
    if value.get("json_schema") is None and isinstance(value.get("schema"), dict):
        return
    schema = object_of(_JSON_SCHEMA)(value.get("json_schema"), f"{name}.json_schema", limits)
    for key in ("name", "schema"):
        if schema.get(key) is None:
            raise BadRequest(f"`{name}.json_schema.{key}` is missing.", param=name)


def _structural_tag(value: Any, name: str, limits: Limits) -> None:
    mapping(value, name, limits)
    if value.get("format") is not None:
        mapping(value["format"], f"{name}.format", limits)
        return
    structures, triggers = value.get("structures"), value.get("triggers")
    if not isinstance(structures, list) or not isinstance(triggers, list):
        raise BadRequest(
            f"`{name}` must have a `format`, or `structures` and `triggers` as lists.", param=name
        )
    for place, one in enumerate(structures):
        where = f"{name}.structures[{place}]"
        object_of({"begin": text(), "schema": mapping, "end": text()})(one, where, limits)
        if one.get("begin") is None or one.get("end") is None:
            raise BadRequest(f"`{where}` must have `begin` and `end`.", param=name)
    for place, one in enumerate(triggers):
        text()(one, f"{name}.triggers[{place}]", limits)


def check_one_grammar(params: Body, prefix: str = "") -> None:
    """Refuse two things that an answer would have to obey at once."""
    grammars = [name for name in _GRAMMARS if params.get(name)]
    if (params.get("response_format") or {}).get("type") not in (None, "text"):
        grammars.append("response_format")
    if len(grammars) > 1:
        names = " and ".join(f"`{prefix}{name}`" for name in grammars)
        raise BadRequest(
            f"{names} cannot be obeyed at once: send one of them.", param=prefix + grammars[0]
        )


def check_lengths(params: Body, least: str, most: Sequence[str], prefix: str = "") -> None:
    """Refuse a least length of an answer above the most."""
    low = params.get(least) or 0
    for name in most:
        high = params.get(name)
        if high is not None and low > high:
            raise BadRequest(
                f"`{prefix}{least}` must be at most `{prefix}{name}`, which is {high}, not {low}.",
                param=prefix + least,
            )


@describe({"type": "object"})
def plain_params(value: Any, name: str, limits: Limits) -> Any:
    """Parameters of a custom logit processor: scalars, and lists and objects of them."""
    mapping(value, name, limits)
    for key, one in value.items():
        inner = list(one.values()) if isinstance(one, dict) else one
        for single in inner if isinstance(inner, list) else [inner]:
            if isinstance(single, dict | list):
                raise BadRequest(
                    f"`{name}.{key}` is nested too deeply: it may be a text, a number, a boolean, "
                    "or a list or an object of these.",
                    param=name,
                )
            if type(single) is int and not -(2**63) <= single < 2**63:
                refuse(f"{name}.{key}", single, "a number of 64 bits")
        if key.startswith(("__sglang", "__ps_sglang")):
            raise BadRequest(
                f"`{name}.{key}` is set by the engine or the gateway, not by clients.", param=name
            )
    return value


@describe({"type": "object"})
def watermark(value: Any, name: str, limits: Limits) -> Any:
    """Settings of SGLang's watermark."""
    mapping(value, name, limits)
    fields: dict[str, Check] = {
        "enabled": boolean,
        "key": text(256),
        "context_window": anything,
    }
    if unknown := sorted(value.keys() - fields):
        raise BadRequest(f"`{name}` has no field {unknown[0]!r}.", param=name)
    window = value.get("context_window")
    if window is not None and (type(window) is not int or not 1 <= window < 2**31):
        refuse(f"{name}.context_window", window, f"from 1 to {2**31 - 1}")
    return object_of(fields)(value, name, limits)


@describe({"type": "string", "maxLength": _MOST_STOP_REGEX_BYTES})
def stop_regex(value: Any, name: str, limits: Limits) -> Any:
    """A text that is a regular expression; workers bound the time of a search."""
    if not isinstance(value, str):
        refuse(name, value, "a regular expression, as a text")
    if (size := len(value.encode())) > _MOST_STOP_REGEX_BYTES:
        raise BadRequest(
            f"`{name}` must have at most {_MOST_STOP_REGEX_BYTES} bytes, not {size}.", param=name
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # of a pattern that may mean another one
            re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise BadRequest(
            f"`{name}` is {value!r}, which is no regular expression of Python's: {error}.",
            param=name,
        ) from error
    return value
