"""The JSON schemas of request bodies, by their routes, made of the tables that check them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ps_sglang.gateway.bodies import (
    anthropic_request,
    engine_fields,
    fields,
    responses_request,
)
from ps_sglang.gateway.bodies.hints import Hints
from ps_sglang.gateway.bodies.schemas import Schema, object_schema, with_one_of
from ps_sglang.gateway.routes.decoders import NewDecoder, NewVersion
from ps_sglang.gateway.workers.admission import Joining

_TEXT: Final[Schema] = {"type": "string"}
_OBJECT: Final[Schema] = {"type": "object"}
_NAME: Final[Schema] = {"type": "string", "minLength": 1, "maxLength": 256}
_SALT: Final[Schema] = {"type": "string", "maxLength": 256}
_TOKEN: Final[Schema] = {"type": "integer", "minimum": 0}


def _list_of(one: Schema, least: int = 1) -> Schema:
    return {"type": "array", "items": one, "minItems": least}


def _either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


_IDS: Final = _list_of(_TOKEN)
_SOME_TEXT: Final[Schema] = {"type": "string", "minLength": 1}
_PROMPT: Final = _either(_SOME_TEXT, _list_of(_SOME_TEXT), _IDS, _list_of(_IDS))
_MODEL: Final[Schema] = {
    "type": "string",
    "description": "The decoder; it may be left out if the URL names one, or there is only one.",
}


def _struct(kind: type[msgspec.Struct]) -> Schema:
    (schema,), definitions = msgspec.json.schema_components([kind])
    name = schema["$ref"].rpartition("/")[2]
    found: Schema = definitions[name]
    return found


# Beside the tables: what tells of the conversation, the tenant and the steps to come.
_ABOUT: Final[Mapping[str, Schema]] = {
    "model": _MODEL,
    "cache_salt": _SALT,
    "extra_key": _SALT,
    "rid": _NAME,
    "session_id": _NAME,
    "parent_session_id": _NAME,
    "hints": _struct(Hints),
    "prompt_cache_key": _NAME,
    "prompt_cache_retention": {"enum": ["in-memory", "in_memory", "24h"]},
    "service_tier": {"enum": ["auto", "default", "flex", "scale", "priority", "standard_only"]},
    "cache_control": {
        "type": "object",
        "properties": {"type": {"const": "ephemeral"}, "ttl": {"enum": ["5m", "1h"]}},
    },
    "nvext": _OBJECT,
}


def _object(needed: Mapping[str, Schema], more: Mapping[str, Schema] | None = None) -> Schema:
    """An object with fields that it must have, and some that it may have."""
    return {
        "type": "object",
        "properties": {**needed, **(more or {})},
        "required": list(needed),
    }


def _kind(kind: str, **needed: Schema) -> Schema:
    return _object({"type": {"const": kind}, **needed})


def _message(content: Schema, *roles: str) -> Schema:
    return _object({"role": {"enum": list(roles)}}, {"content": content})


_CHAT_MESSAGES: Final = _list_of(
    _message(
        _either(_TEXT, _list_of(_OBJECT, 0), {"type": "null"}),
        *("system", "developer", "user", "assistant", "tool"),
    )
)
_CHAT: Final = object_schema(
    fields.CHAT, {**_ABOUT, "messages": _CHAT_MESSAGES, "input_ids": _IDS}, needed=("messages",)
)
_COMPLETIONS: Final = object_schema(
    fields.COMPLETIONS, {**_ABOUT, "prompt": _PROMPT}, needed=("prompt",)
)
_GENERATE: Final = with_one_of(
    object_schema(
        fields.GENERATE,
        {
            **_ABOUT,
            "text": _either(_SOME_TEXT, _list_of(_SOME_TEXT)),
            "input_ids": _either(_IDS, _list_of(_IDS)),
            "sampling_params": object_schema(fields.SAMPLING_PARAMS),
            "rid": _either(_NAME, _list_of(_NAME)),
        },
    ),
    *("text", "input_ids"),
)


def _like_chat(names: tuple[str, ...]) -> dict[str, Schema]:
    """The schemas of those fields that mean in another API what they mean in a chat."""
    return {name: one for name, one in _CHAT["properties"].items() if name in names}


_TEXT_BLOCK: Final = _kind("text", text=_TEXT)
_TEXT_BLOCKS: Final = _either(_TEXT, _list_of(_TEXT_BLOCK, 0))
_BLOCK: Final = _either(
    _TEXT_BLOCK,
    _kind("thinking", thinking=_TEXT),
    _kind("tool_use", id=_TEXT, name=_TEXT, input=_OBJECT),
    _object(
        {"type": {"const": "tool_result"}, "tool_use_id": _TEXT},
        {"content": _either(_TEXT_BLOCKS, {"type": "null"})},
    ),
    _kind("search_result", content=_TEXT_BLOCKS),
)
_ANTHROPIC: Final = {
    **_like_chat(anthropic_request.SAME),
    "messages": _list_of(
        _object(
            {
                "role": {"enum": ["user", "assistant", "system"]},
                "content": _either(_TEXT, _list_of(_BLOCK, 0)),
            }
        )
    ),
    "system": _TEXT_BLOCKS,
    "tools": {"type": "array", "items": _OBJECT},
    "cache_control": _ABOUT["cache_control"],
}
_MESSAGES: Final = object_schema(
    anthropic_request.FIELDS, _ANTHROPIC, needed=("messages", "max_tokens")
)
_PART: Final = _object({"type": {"enum": ["input_text", "output_text", "text"]}, "text": _TEXT})
_PARTS: Final = _either(_TEXT, _list_of(_PART, 0))
_ITEM: Final = _either(
    _object(
        {"role": {"enum": ["user", "assistant", "system", "developer"]}, "content": _PARTS},
        {"type": {"const": "message"}},
    ),
    _kind("function_call", call_id=_TEXT, name=_TEXT, arguments=_TEXT),
    _kind("function_call_output", call_id=_TEXT, output=_PARTS),
    _kind("reasoning"),
)
_RESPONSES: Final = object_schema(
    responses_request.FIELDS,
    {
        **_like_chat(responses_request.SAME),
        "input": _either(_TEXT, _list_of(_ITEM)),
        "tools": {"type": "array", "items": _OBJECT},
        "tool_choice": {"anyOf": [{"enum": ["auto", "none", "required"]}, _OBJECT]},
    },
    needed=("input",),
)
_TOKENIZE: Final = with_one_of(
    object_schema(engine_fields.TOKENIZE, {"model": _MODEL, "messages": _CHAT_MESSAGES}),
    *("prompt", "messages"),
)
_DETOKENIZE: Final = object_schema(
    engine_fields.DETOKENIZE,
    {
        "model": _MODEL,
        "tokens": _either(_list_of(_TOKEN, 0), _list_of(_list_of(_TOKEN, 0))),
    },
    needed=("tokens",),
)

BODIES: Final[Mapping[tuple[str, str], Schema]] = {
    ("post", "/v1/chat/completions"): _CHAT,
    ("post", "/v1/completions"): _COMPLETIONS,
    ("post", "/generate"): _GENERATE,
    ("post", "/v1/messages"): _MESSAGES,
    ("post", "/v1/messages/count_tokens"): object_schema(
        anthropic_request.FIELDS, _ANTHROPIC, needed=("messages",)
    ),
    ("post", "/v1/responses"): _RESPONSES,
    ("post", "/tokenize"): _TOKENIZE,
    ("post", "/v1/tokenize"): _TOKENIZE,
    ("post", "/detokenize"): _DETOKENIZE,
    ("post", "/v1/detokenize"): _DETOKENIZE,
    ("post", "/abort_request"): object_schema(engine_fields.ABORT, {"rid": _NAME}, needed=("rid",)),
    ("post", "/parse_function_call"): object_schema(
        engine_fields.PARSE_FUNCTION_CALL, needed=("text", "tool_call_parser")
    ),
    ("post", "/separate_reasoning"): object_schema(
        engine_fields.SEPARATE_REASONING, needed=("text", "reasoning_parser")
    ),
    ("post", "/debug/route"): {"anyOf": [_CHAT, _COMPLETIONS, _GENERATE]},
    ("post", "/workers"): _struct(Joining),
    ("post", "/workers/{name}/swap"): _object({"model_path": _TEXT}),
    ("post", "/decoders"): _struct(NewDecoder),
    ("put", "/decoders/{name}"): _struct(NewVersion),
}
"""By method and path."""

STREAMED: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/generate",
    "/v1/messages",
    "/v1/responses",
)
"""Routes whose answer is a stream of events where the body has `stream: true`."""


def error_schema(path: str) -> Schema:
    """What an error of a route looks like: Anthropic's form on its own, else OpenAI's."""
    if path.startswith("/v1/messages"):
        fields_: dict[str, Any] = {"type": _TEXT, "message": _TEXT}
        error = {"type": "object", "properties": fields_, "required": list(fields_)}
        properties: dict[str, Any] = {"type": {"const": "error"}, "error": error}
        return {"type": "object", "properties": properties, "required": ["type", "error"]}
    text_or_null = {"type": ["string", "null"]}
    fields_ = {"message": _TEXT, "type": _TEXT, "param": text_or_null, "code": text_or_null}
    error = {"type": "object", "properties": fields_, "required": ["message", "type"]}
    return {"type": "object", "properties": {"error": error}, "required": ["error"]}
