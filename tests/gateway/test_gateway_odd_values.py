"""Every value of rich requests, replaced by odd ones: answered or refused, never a failure."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from tests.gateway.gateway_setup import Setup

ODD: tuple[Any, ...] = (
    None, True, 5, -1, 1.5, 2**70, "", "x", "x\0\n", "x" * 300,
    [], [None], [[]], ["x"], [{}], {}, {"type": []}, {"type": "text"}, {"x": None},
)  # fmt: skip
SCHEMA = {"type": "object", "properties": {"x": {"type": "string"}}}
ABOUT = {
    "cache_salt": "t",
    "rid": "r",
    "priority": 1,
    "session_id": "s",
    "parent_session_id": "p",
    "hints": {"priority": 1},
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "service_tier": "auto",
    "cache_control": {"type": "ephemeral", "ttl": "5m"},
    "nvext": {
        "agent_hints": {"priority": 1, "speculative_prefill": False},
        "agent_context": {"session_id": "s", "parent_session_id": "p", "session_final": False},
        "cache_control": {"type": "ephemeral"},
    },
}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
RICH: dict[str, dict[str, Any]] = {
    "/v1/messages": {
        "model": "a",
        "max_tokens": 2,
        "system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "x"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "x", "signature": "x"},
                    {"type": "tool_use", "id": "c", "name": "f", "input": {"x": "y"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "c",
                        "content": [
                            {"type": "text", "text": "x"},
                            {
                                "type": "search_result",
                                "title": "x",
                                "source": "x",
                                "content": [{"type": "text", "text": "x"}],
                            },
                        ],
                    }
                ],
            },
        ],
        "tools": [{"name": "f", "description": "x", "input_schema": SCHEMA, "strict": True}],
        "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 2000},
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
        "stop_sequences": ["x"],
        "metadata": {"user_id": "x"},
        "chat_template_kwargs": {"x": 1},
        **ABOUT,
    },
    "/v1/responses": {
        "model": "a",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "x"},
        ],
        "instructions": "x",
        "max_output_tokens": 2,
        "tools": [{"type": "function", "name": "f", "parameters": SCHEMA, "strict": True}],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}},
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["message.output_text.logprobs"],
        "metadata": {"k": "v"},
        "store": True,
        "previous_response_id": None,
        "temperature": 0.5,
        "top_logprobs": 1,
        "user": "u",
        "truncation": "disabled",
        **ABOUT,
    },
    "/v1/chat/completions": {
        "model": "a",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {}}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c", "content": "x"},
        ],
        "tools": [FUNCTION],
        "max_tokens": 2,
        **ABOUT,
    },
    "/tokenize": {
        "model": "a",
        "messages": [{"role": "user", "content": "x"}],
        "tools": [FUNCTION],
        "tool_choice": "auto",
        "chat_template_kwargs": {},
    },
    "/detokenize": {"model": "a", "tokens": [[1, 2], [3]], "skip_special_tokens": True},
    "/parse_function_call": {"text": "x", "tools": [FUNCTION], "tool_call_parser": "qwen25"},
    "/separate_reasoning": {"text": "x", "reasoning_parser": "qwen3", "return_blocks": True},
    "/abort_request": {"rid": "x", "abort_all": False},
}
RICH["/v1/messages/count_tokens"] = RICH["/v1/messages"]


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside, and to the whole."""
    yield place
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*place, key))


def replaced(body: Any, place: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(body)
    inside = changed
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    return changed


@pytest.mark.parametrize("path", RICH)
async def test_an_odd_value_is_no_failure(gateway: Setup, path: str) -> None:
    body = RICH[path]
    status, answer = await gateway.post(path, body) if path != "/abort_request" else (200, None)
    assert status == 200, answer
    for place in places(body):
        if not place:
            continue
        for odd in ODD:
            sent = replaced(body, place, odd)
            async with gateway.http.post(gateway.url + path, json=sent) as response:
                content = await response.read()
            assert response.status < 500, (place, odd, content)
            if response.status != 200:
                assert b'"message": "' in content, (place, odd)
    assert gateway.pending() == 0
