"""Requests of every kind to every route that an SGLang server and the gateway both have."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_DEADLINE_S = 60.0
MODEL = "twin"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FUNCTION = {"name": "f", "description": "Does it.", "parameters": SCHEMA}
TOOLS = [{"type": "function", "function": FUNCTION}]
USER = [{"role": "user", "content": "Tell me a story."}]
TALK = [
    {"role": "system", "content": "Be brief."},
    *USER,
    {"role": "assistant", "content": "Once"},
    {"role": "user", "content": [{"type": "text", "text": "And then?"}]},
]
LONG = "one two three " * 2000  # more than the context
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


@dataclass(frozen=True)
class Asked:
    """One request; `body` is JSON, or bytes as they are."""

    path: str
    body: Any = None
    method: str = "POST"
    kind: str = "application/json"


@dataclass(frozen=True)
class Answered:
    """What can be compared of an answer: nothing in it that is the model's or the moment's."""

    status: int
    kind: str
    shape: frozenset[str] = frozenset()
    events: tuple[str, ...] = ()
    content: Any = field(default=None, compare=False)


def _cases(path: str, base: dict[str, Any], more: dict[str, Any]) -> dict[str, Asked]:
    return {
        f"{path} {name}": Asked(path, body if isinstance(body, bytes) else _merged(base, body))
        for name, body in more.items()
    }


def _merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """`base` with the fields of `more`, without those that are `...`."""
    both = {**base, **more}
    if isinstance(base.get("sampling_params"), dict) and isinstance(
        more.get("sampling_params"), dict
    ):
        both["sampling_params"] = {**base["sampling_params"], **more["sampling_params"]}
    return {name: value for name, value in both.items() if value is not ...}


_BAD_JSON: dict[str, Any] = {
    "bad JSON": b'{"model": "twin", ',
    "not an object": b'["twin"]',
    "no body": b"",
    "not UTF-8": b'{"model": "\xff"}',
}


def _sampling(**params: Any) -> dict[str, Any]:
    return {"sampling_params": params}


_GENERATE = {
    "plain": {},
    "token ids": {"text": ..., "input_ids": [40, 41, 42, 43]},
    "two prompts": {"text": ["One two", "three"]},
    "two lists of ids": {"text": ..., "input_ids": [[40, 41], [42, 43]]},
    "n": _sampling(n=2),
    "n of two prompts": {"text": ["One two", "three"], **_sampling(n=2)},
    "stream": {"stream": True},
    "stream n": {"stream": True, **_sampling(n=2)},
    "logprobs": {"return_logprob": True, "top_logprobs_num": 2},
    "logprobs with text": {
        "return_logprob": True, "top_logprobs_num": 2, "return_text_in_logprobs": True,
    },
    "logprobs of ids": {"return_logprob": True, "token_ids_logprob": [3, 4]},
    "stream logprobs": {"return_logprob": True, "top_logprobs_num": 2, "stream": True},
    "stop": _sampling(stop=["e", "a"], max_new_tokens=30),
    "stop ids": _sampling(stop_token_ids=list(range(3, 250)), max_new_tokens=30),
    "stop regex": _sampling(stop_regex="[a-z]", max_new_tokens=30),
    "json schema": _sampling(json_schema=json.dumps(SCHEMA), max_new_tokens=30),
    "regex": _sampling(regex="[a-c]{3,5}"),
    "ebnf": _sampling(ebnf='root ::= "yes" | "no"'),
    "no new tokens": _sampling(max_new_tokens=0),
    "seed": _sampling(temperature=1.0, sampling_seed=7),
    "rid": {"rid": "mine"},
    "logprobs of the prompt": {"return_logprob": True, "logprob_start_len": 0},
    "hidden states": {"return_hidden_states": True},
    "error: neither text nor ids": {"text": ...},
    "error: both": {"input_ids": [40, 41]},
    "error: text of a number": {"text": 5},
    "error: empty text": {"text": ""},
    "error: id beyond the vocabulary": {"text": ..., "input_ids": [40, 100_000]},
    "error: too long": {"text": LONG},
    "error: temperature": _sampling(temperature=-1),
    "error: top_p": _sampling(top_p=2),
    "error: top_k": _sampling(top_k=0),
    "error: n": _sampling(n=0),
    "error: tokens of a text": _sampling(max_new_tokens="many"),
    "error: min above max": _sampling(min_new_tokens=9, max_new_tokens=4),
    "error: unknown parameter": _sampling(max_tokens=5),
    "error: schema": _sampling(json_schema='{"type": "x"}'),
    "error: regex": _sampling(regex="("),
    "error: two grammars": _sampling(regex="a", ebnf='root ::= "a"'),
    "error: stream of a text": {"stream": "maybe"},
    "stream error: too long": {"text": LONG, "stream": True},
    "stream error: temperature": {"stream": True, **_sampling(temperature=-1)},
    **{f"error: {name}": body for name, body in _BAD_JSON.items()},
}  # fmt: skip
_BOTH_OPENAI: dict[str, Any] = {
    "plain": {},
    "n": {"n": 2},
    "stream": {"stream": True},
    "stream usage": {"stream": True, "stream_options": {"include_usage": True}},
    "stream continuous usage": {
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    },
    "stream n": {"stream": True, "n": 2},
    "stop": {"stop": ["e", "a"], "max_tokens": 30},
    "stop text": {"stop": "e", "max_tokens": 30},
    "stop ids": {"stop_token_ids": list(range(3, 250)), "max_tokens": 30},
    "seed": {"temperature": 1.0, "seed": 7},
    "penalties": {"frequency_penalty": 1.0, "presence_penalty": 1.0, "repetition_penalty": 1.1},
    "logit bias": {"logit_bias": {"77": 4.0}},
    "json object": {"response_format": {"type": "json_object"}, "max_tokens": 30},
    "json schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
        "max_tokens": 30,
    },
    "regex": {"regex": "[a-c]{3,5}"},
    "user": {"user": "me"},
    "no model": {"model": ...},
    "unknown fields": {"nonsense": 5},
    "rid": {"rid": "mine"},
    "token ids returned": {"return_token_ids": True},
    "whole number with a point": {"max_tokens": 4.0},
    "best_of": {"best_of": 2},
    "error: unknown model": {"model": "other"},
    "error: model of a number": {"model": 5},
    "error: temperature": {"temperature": -1},
    "error: temperature of a text": {"temperature": "hot"},
    "error: top_p": {"top_p": 2},
    "error: n": {"n": 0},
    "error: n of a text": {"n": "two"},
    "error: max_tokens": {"max_tokens": 0},
    "error: min above max": {"min_tokens": 9, "max_tokens": 4},
    "error: stream of a text": {"stream": "maybe"},
    "error: response format": {"response_format": {"type": "xml"}},
    "error: schema": {
        "response_format": {
            "type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "x"}}
        }
    },
    "error: logit bias": {"logit_bias": {"x": 1}},
    **{f"error: {name}": body for name, body in _BAD_JSON.items()},
}  # fmt: skip
_COMPLETIONS = {
    **_BOTH_OPENAI,
    "token ids": {"prompt": [40, 41, 42, 43]},
    "two prompts": {"prompt": ["One two", "three"]},
    "two lists of ids": {"prompt": [[40, 41], [42, 43]]},
    "n of two prompts": {"prompt": ["One two", "three"], "n": 2},
    "echo": {"echo": True},
    "stream echo": {"echo": True, "stream": True},
    "logprobs": {"logprobs": 2},
    "stream logprobs": {"logprobs": 2, "stream": True},
    "suffix": {"suffix": "the end"},
    "echo with logprobs": {"echo": True, "logprobs": 1},
    "error: no prompt": {"prompt": ...},
    "error: empty prompt": {"prompt": ""},
    "error: no prompts": {"prompt": []},
    "error: prompt of a number": {"prompt": 5},
    "error: too long": {"prompt": LONG},
    "stream error: too long": {"prompt": LONG, "stream": True},
    "error: id beyond the vocabulary": {"prompt": [40, 100_000]},
}
_CHAT = {
    **_BOTH_OPENAI,
    "talk": {"messages": TALK},
    "developer": {"messages": [{"role": "developer", "content": "Be brief."}, *USER]},
    "max_completion_tokens": {"max_tokens": ..., "max_completion_tokens": 4},
    "logprobs": {"logprobs": True},
    "top logprobs": {"logprobs": True, "top_logprobs": 2},
    "stream top logprobs": {"logprobs": True, "top_logprobs": 2, "stream": True},
    "tools": {"tools": TOOLS},
    "no tools": {"tools": TOOLS, "tool_choice": "none"},
    "tool required": {"tools": TOOLS, "tool_choice": "required", "max_tokens": 60},
    "tool named": {
        "tools": TOOLS, "max_tokens": 60,
        "tool_choice": {"type": "function", "function": {"name": "f"}},
    },
    "stream tool required": {
        "tools": TOOLS, "tool_choice": "required", "max_tokens": 60, "stream": True,
    },
    "meta info": {"return_meta_info": True},
    "error: no messages": {"messages": ...},
    "error: empty messages": {"messages": []},
    "error: messages of a text": {"messages": "Hello"},
    "error: role": {"messages": [{"role": "wizard", "content": "x"}]},
    "error: content of a number": {"messages": [{"role": "user", "content": 5}]},
    "error: image": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,x"}}],
            }
        ]
    },
    "error: too long": {"messages": [{"role": "user", "content": LONG}]},
    "stream error: too long": {"messages": [{"role": "user", "content": LONG}], "stream": True},
    "error: tool without a name": {"tools": [{"type": "function", "function": {}}]},
    "error: unknown tool named": {
        "tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}},
    },
    "error: required without tools": {"tool_choice": "required"},
    "error: top logprobs": {"logprobs": True, "top_logprobs": 100_000},
}  # fmt: skip
_RESPONSES = {
    "plain": {},
    "instructions": {"instructions": "Be brief."},
    "items": {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}]},
    "stream": {"stream": True},
    "not stored": {"store": False},
    "metadata": {"metadata": {"a": "b"}},
    "tools": {"tools": [{"type": "function", **FUNCTION}]},
    "tool required": {
        "tools": [{"type": "function", **FUNCTION}], "tool_choice": "required",
        "max_output_tokens": 60,
    },
    "logprobs": {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    "json schema": {
        "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
        "max_output_tokens": 30,
    },
    "background": {"background": True},
    "truncation": {"truncation": "auto"},
    "web search": {"tools": [{"type": "web_search_preview"}]},
    "error: no input": {"input": ...},
    "error: input of a number": {"input": 5},
    "error: unknown model": {"model": "other"},
    "error: temperature": {"temperature": -1},
    "error: temperature of a text": {"temperature": "hot"},
    "error: max_output_tokens": {"max_output_tokens": 0},
    "error: unknown previous": {"previous_response_id": "resp_0"},
    "error: too long": {"input": LONG},
    "stream error: too long": {"input": LONG, "stream": True},
    **{f"error: {name}": body for name, body in _BAD_JSON.items()},
}  # fmt: skip
_MESSAGES = {
    "plain": {},
    "system": {"system": "Be brief."},
    "system blocks": {"system": [{"type": "text", "text": "Be brief."}]},
    "blocks": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]},
    "stream": {"stream": True},
    "stop": {"stop_sequences": ["e", "a"], "max_tokens": 30},
    "tools": {"tools": [{"name": "f", "input_schema": SCHEMA}]},
    "tool any": {
        "tools": [{"name": "f", "input_schema": SCHEMA}], "tool_choice": {"type": "any"},
        "max_tokens": 60,
    },
    "thinking": {"thinking": {"type": "enabled", "budget_tokens": 2000}},
    "error: no max_tokens": {"max_tokens": ...},
    "error: max_tokens": {"max_tokens": 0},
    "error: no messages": {"messages": ...},
    "error: empty messages": {"messages": []},
    "error: role": {"messages": [{"role": "wizard", "content": "x"}]},
    "error: temperature": {"temperature": -1},
    "error: unknown model": {"model": "other"},
    "error: too long": {"messages": [{"role": "user", "content": LONG}]},
    "stream error: too long": {"messages": [{"role": "user", "content": LONG}], "stream": True},
    **{f"error: {name}": body for name, body in _BAD_JSON.items()},
}  # fmt: skip
_COUNT = {
    "plain": {},
    "system": {"system": "Be brief."},
    "tools": {"tools": [{"name": "f", "input_schema": SCHEMA}]},
    "error: no messages": {"messages": ...},
    "error: bad JSON": _BAD_JSON["bad JSON"],
}
_TOKENIZE = {
    "text": {"prompt": "Hello there"},
    "texts": {"prompt": ["Hello", "there"]},
    "chat": {"messages": USER},
    "chat with tools": {"messages": USER, "tools": TOOLS},
    "without special tokens": {"prompt": "Hello", "add_special_tokens": False},
    "no model": {"prompt": "Hello", "model": ...},
    "error: neither": {},
    "error: prompt of a number": {"prompt": 5},
    "error: both": {"prompt": "x", "messages": USER},
    "error: bad JSON": _BAD_JSON["bad JSON"],
}
_DETOKENIZE = {
    "ids": {"tokens": [40, 41]},
    "lists": {"tokens": [[40], [41, 42]]},
    "none": {"tokens": []},
    "error: text": {"tokens": "x"},
    "error: missing": {},
    "error: mixed": {"tokens": [40, "x"]},
    "error: beyond the vocabulary": {"tokens": [100_000]},
    "error: negative": {"tokens": [-1]},
}
_GREEDY = {"temperature": 0}
_OF_MODEL: dict[str, Any] = {"model": MODEL, **_GREEDY}
_BASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "/generate": (
        {"text": "One two", "sampling_params": {"max_new_tokens": 4, "temperature": 0}}, _GENERATE
    ),
    "/v1/completions": ({**_OF_MODEL, "prompt": "One two", "max_tokens": 4}, _COMPLETIONS),
    "/v1/chat/completions": ({**_OF_MODEL, "messages": USER, "max_tokens": 4}, _CHAT),
    "/v1/responses": ({**_OF_MODEL, "input": "Hello", "max_output_tokens": 4}, _RESPONSES),
    "/v1/messages": ({**_OF_MODEL, "messages": USER, "max_tokens": 4}, _MESSAGES),
    "/v1/messages/count_tokens": ({"model": MODEL, "messages": USER}, _COUNT),
    "/tokenize": ({"model": MODEL}, _TOKENIZE),
    "/v1/tokenize": ({"model": MODEL}, _TOKENIZE),
    "/detokenize": ({"model": MODEL}, _DETOKENIZE),
    "/v1/detokenize": ({"model": MODEL}, _DETOKENIZE),
    "/parse_function_call": (
        {"text": CALL, "tools": TOOLS, "tool_call_parser": "qwen25"},
        {
            "call": {},
            "no call": {"text": "Hello"},
            "error: unknown parser": {"tool_call_parser": "x"},
            "error: no text": {"text": ...},
        },
    ),
    "/separate_reasoning": (
        {"text": "<think>why</think>so", "reasoning_parser": "qwen3"},
        {
            "thought": {},
            "no thought": {"text": "so"},
            "blocks": {"return_blocks": True},
            "error: unknown parser": {"reasoning_parser": "x"},
            "error: no text": {"text": ...},
        },
    ),
    "/abort_request": (
        {"rid": "nobody's"},
        {
            "unknown id": {}, "all": {"rid": "", "abort_all": True}, "no id": {"rid": ...},
            "error: id of a number": {"rid": 5},
        },
    ),
}  # fmt: skip
_GETS = (
    *("/v1/models", f"/v1/models/{MODEL}", "/v1/models/other"),
    *("/model_info", "/get_model_info", "/server_info", "/get_server_info"),
    *("/health", "/health_generate", "/ready", "/metrics", "/flush_cache"),
    *("/v1/loads", "/v1/loads?include=core", "/v1/loads?include=nonsense"),
    *("/v1/loads?format=prometheus", "/v1/loads?dp_rank=x", "/v1/loads?dp_rank=7"),
    *("/v1/responses/resp_0", "/v1/responses/other", "/nowhere"),
    *("/generate", "/v1/completions", "/v1/messages", "/abort_request"),
)


def cases() -> dict[str, Asked]:
    """All requests, by a name that begins with their route."""
    found: dict[str, Asked] = {}
    for path, (base, more) in _BASES.items():
        found |= _cases(path, base, more)
    found |= {f"{path} GET": Asked(path, method="GET") for path in _GETS}
    found |= {
        f"{path} error: another content type": Asked(path, base, kind="text/plain")
        for path, (base, _) in _BASES.items()
    }
    found["/flush_cache POST"] = Asked("/flush_cache")
    found["/generate PUT"] = Asked("/generate", _BASES["/generate"][0], method="PUT")
    found["/v1/responses/resp_0/cancel"] = Asked("/v1/responses/resp_0/cancel")
    return found


def ask(url: str, asked: Asked) -> Answered:
    """The answer of a server."""
    content = (
        asked.body if isinstance(asked.body, bytes | None) else json.dumps(asked.body).encode()
    )
    request = urllib.request.Request(
        url + asked.path, content, {"content-type": asked.kind}, method=asked.method
    )
    if asked.method == "POST" and content is None:
        request.data = b""
    try:
        with urllib.request.urlopen(request, timeout=_DEADLINE_S) as response:
            return _answered(response.status, response.headers, response.read())
    except urllib.error.HTTPError as error:
        with error:
            return _answered(error.code, error.headers, error.read())


def _answered(status: int, headers: Any, content: bytes) -> Answered:
    kind = headers.get_content_type() if "content-type" in headers else "none"
    text = content.decode()
    if kind == "text/event-stream":
        return _streamed(status, kind, text)
    if kind == "application/json":
        value = json.loads(text)
        # What a server was started with says nothing of shapes, but for the names.
        shape = value if "internal_states" in value else paths(value)
        return Answered(status, kind, frozenset(shape), content=value)
    return Answered(status, kind, content=text)


def _streamed(status: int, kind: str, text: str) -> Answered:
    """All events together have one shape; their names, repeated ones once, show the order."""
    assert text.endswith("\n\n"), text[-100:]
    names: list[str] = []
    shape: set[str] = set()
    events = text.removesuffix("\n\n").split("\n\n")
    for event in events:
        fields = dict(line.split(": ", 1) for line in event.splitlines())
        name = "[DONE]" if fields["data"] == "[DONE]" else fields.get("event", "data")
        if not names or names[-1] != name:
            names.append(name)
        if name != "[DONE]":
            shape.update(paths(json.loads(fields["data"])))
    return Answered(status, kind, frozenset(shape), tuple(names), content=events)


def paths(value: Any, place: str = "") -> Iterator[str]:
    """Every field of a JSON value with its type, as `choices[].text: text`."""
    if isinstance(value, dict):
        if not value:
            yield f"{place}: {{}}"
        for name, inner in value.items():
            yield from paths(inner, f"{place}.{name}" if place else name)
    elif isinstance(value, list):
        if not value:
            yield f"{place}: []"
        for inner in value:
            yield from paths(inner, f"{place}[]")
    else:
        yield f"{place}: {_type(value)}"


def _type(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    return {int: "integer", float: "number", str: "text"}[type(value)]


def differences(theirs: Answered, ours: Answered) -> Iterator[str]:
    """What another answer has otherwise, one line each; of refusals the status only."""
    if theirs.status != ours.status:
        yield f"status {theirs.status} -> {ours.status}"
        return
    if ours.status >= 400:
        return
    if theirs.kind != ours.kind:
        yield f"type {theirs.kind} -> {ours.kind}"
    if theirs.events != ours.events:
        yield f"events {' '.join(theirs.events)} -> {' '.join(ours.events)}"
    yield from (f"without {path}" for path in sorted(theirs.shape - ours.shape))
    yield from (f"with {path}" for path in sorted(ours.shape - theirs.shape))
