"""Anthropic's Messages API: what reaches engines, and what their answers become."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from ps_sglang.gateway.bodies import anthropic_request
from ps_sglang.gateway.bodies.checks import Limits
from tests.gateway.gateway_setup import Setup
from tests.support.standin_engine import CONTEXT_LENGTH, VOCABULARY

PATH = "/v1/messages"
USER = [{"role": "user", "content": "hi there"}]
TOOL: dict[str, Any] = {
    "name": "weather",
    "description": "The weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
FUNCTION = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather",
        "parameters": TOOL["input_schema"],
        "strict": False,
    },
}


def body(**fields: Any) -> dict[str, Any]:
    given = {"model": "a", "max_tokens": 5, "messages": USER, **fields}
    return {name: value for name, value in given.items() if value is not None}


def chat(**fields: Any) -> dict[str, Any]:
    return anthropic_request.chat_body(body(**fields), Limits(VOCABULARY, CONTEXT_LENGTH))


def events(text: str) -> list[dict[str, Any]]:
    """The payloads of a stream, each under its own name."""
    found = []
    for event in filter(None, text.split("\n\n")):
        name, data = event.split("\n")
        payload = json.loads(data.removeprefix("data: "))
        assert name == f"event: {payload['type']}"
        found.append(payload)
    return found


async def test_a_message_is_answered(gateway: Setup) -> None:
    status, answer = await gateway.post(PATH, body(system="be brief", stop_sequences=["END"]))
    assert status == 200
    assert answer.pop("id").startswith("msg_")
    assert answer == {
        "type": "message",
        "role": "assistant",
        "model": "a",
        "content": [{"type": "text", "text": "a-x-0 a-x-1 a-x-2 a-x-3 a-x-4 "}],
        "stop_reason": "max_tokens",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 3,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 1,
            "output_tokens": 5,
        },
    }
    (sent,) = gateway.decode().requests
    assert sent["messages"] == [{"role": "system", "content": "be brief"}, *USER]
    assert (sent["max_tokens"], sent["stop"], sent["model"]) == (5, ["END"], "a")


async def test_a_stream_has_anthropics_events(gateway: Setup) -> None:
    async with gateway.http.post(gateway.url + PATH, json=body(stream=True)) as response:
        assert response.content_type == "text/event-stream"
        said = events(await response.text())
    first, *_, last = said
    assert first["message"]["usage"] == {
        "input_tokens": 1,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 1,
        "output_tokens": 0,
    }
    assert first["message"]["content"] == []
    assert [one["type"] for one in said] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 5,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert "".join(one["delta"]["text"] for one in said[2:7]) == "a-x-0 a-x-1 a-x-2 a-x-3 a-x-4 "
    assert said[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert said[-2]["usage"]["output_tokens"] == 5
    assert last == {"type": "message_stop"}


SPEECH: list[dict[str, Any]] = [
    {"reasoning_content": "I must "},
    {"reasoning_content": "ask."},
    {"content": "Let me see."},
    {
        "tool_calls": [
            {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather"}}
        ]
    },
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '"Rome"}'}}]},
    {
        "tool_calls": [
            {
                "index": 1,
                "id": "call_2",
                "type": "function",
                "function": {"name": "weather", "arguments": "{}"},
            }
        ]
    },
]


async def test_thoughts_text_and_calls_become_blocks(gateway: Setup) -> None:
    plan = gateway.decode().plan
    plan.deltas, plan.finish = SPEECH, {"finish_reason": "tool_calls"}
    status, answer = await gateway.post(PATH, body(tools=[TOOL]))
    assert (status, answer["stop_reason"]) == (200, "tool_use")
    assert answer["content"] == [
        {"type": "thinking", "thinking": "I must ask.", "signature": ""},
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Rome"}},
        {"type": "tool_use", "id": "call_2", "name": "weather", "input": {}},
    ]


async def test_thoughts_text_and_calls_are_streamed_in_blocks_of_their_own(gateway: Setup) -> None:
    plan = gateway.decode().plan
    plan.deltas, plan.finish = SPEECH, {"finish_reason": "tool_calls"}
    sent = body(tools=[TOOL], stream=True)
    async with gateway.http.post(gateway.url + PATH, json=sent) as response:
        said = events(await response.text())
    starts = [one for one in said if one["type"] == "content_block_start"]
    assert [(one["index"], one["content_block"]["type"]) for one in starts] == [
        (0, "thinking"), (1, "text"), (2, "tool_use"), (3, "tool_use"),
    ]  # fmt: skip
    assert starts[2]["content_block"] == {
        "type": "tool_use", "id": "call_1", "name": "weather", "input": {},
    }  # fmt: skip
    stops = [one["index"] for one in said if one["type"] == "content_block_stop"]
    assert stops == [0, 1, 2, 3]
    deltas = [(one["index"], one["delta"]) for one in said if one["type"] == "content_block_delta"]
    assert deltas == [
        (0, {"type": "thinking_delta", "thinking": "I must "}),
        (0, {"type": "thinking_delta", "thinking": "ask."}),
        (1, {"type": "text_delta", "text": "Let me see."}),
        (2, {"type": "input_json_delta", "partial_json": '{"city": '}),
        (2, {"type": "input_json_delta", "partial_json": '"Rome"}'}),
        (3, {"type": "input_json_delta", "partial_json": "{}"}),
    ]
    assert said[-2]["delta"]["stop_reason"] == "tool_use"


@pytest.mark.parametrize(
    ("finish", "reason", "sequence"),
    [
        ({"finish_reason": "stop"}, "end_turn", None),
        ({"finish_reason": "stop", "matched_stop": 2}, "end_turn", None),
        ({"finish_reason": "stop", "matched_stop": "END"}, "stop_sequence", "END"),
        ({"finish_reason": "stop", "matched_stop": "other"}, "end_turn", None),
        ({"finish_reason": "length"}, "max_tokens", None),
        ({"finish_reason": "content_filter"}, "refusal", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_why_an_answer_stopped(
    gateway: Setup, finish: dict[str, Any], reason: str, sequence: str | None, stream: bool
) -> None:
    plan = gateway.decode().plan
    plan.deltas, plan.finish = [{"content": "x"}], finish
    sent = body(stop_sequences=["END"], stream=stream)
    async with gateway.http.post(gateway.url + PATH, json=sent) as response:
        text = await response.text()
    told = events(text)[-2]["delta"] if stream else json.loads(text)
    assert (told["stop_reason"], told["stop_sequence"]) == (reason, sequence)


async def test_arguments_that_are_no_json_are_wrapped_for_the_model(gateway: Setup) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"ci'}}
    gateway.decode().plan.deltas = [{"tool_calls": [call]}]
    _, answer = await gateway.post(PATH, body(tools=[TOOL]))
    assert answer["content"][0]["input"] == {"INVALID_JSON": '{"ci'}


def test_turns_become_messages_in_their_order() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Look."}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                {"type": "text", "text": "I ask."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "before"},
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "content": [{"type": "text", "text": "sun"}, {"type": "text", "text": "wind"}],
                },
                {"type": "tool_result", "tool_use_id": "t2", "is_error": True},
                {"type": "text", "text": "after"},
                {"type": "text", "text": "all"},
            ],
        },
        {"role": "system", "content": "mind"},
    ]
    system = [{"type": "text", "text": "one", "cache_control": {"type": "ephemeral"}}]
    assert chat(messages=messages, system=system)["messages"] == [
        {"role": "system", "content": "one\nmind"},
        {"role": "user", "content": "Look."},
        {
            "role": "assistant",
            "content": "I ask.",
            "reasoning_content": "Hm.",
            "tool_calls": [
                {
                    "id": "t1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city":"Rome"}'},
                }
            ],
        },
        {"role": "user", "content": "before"},
        {"role": "tool", "tool_call_id": "t1", "content": "sun\nwind"},
        {"role": "tool", "tool_call_id": "t2", "content": ""},
        {
            "role": "user",
            "content": [{"type": "text", "text": "after"}, {"type": "text", "text": "all"}],
        },
    ]


LINE = "x-anthropic-billing-header: cc_version=2.1; cc_entrypoint=cli; cch=71fea;"


@pytest.mark.parametrize(
    "system",
    [
        f"{LINE}\nYou are it.",
        [{"type": "text", "text": LINE}, {"type": "text", "text": "You are it."}],
        [{"type": "text", "text": f"{LINE}\nYou are it."}],
    ],
)
def test_the_billing_line_is_left_out(system: Any) -> None:
    assert chat(system=system)["messages"][0] == {"role": "system", "content": "You are it."}


def test_the_billing_line_elsewhere_is_the_clients_own_text() -> None:
    assert chat(system=f"Quote:\n{LINE}")["messages"][0]["content"] == f"Quote:\n{LINE}"
    messages = [{"role": "user", "content": LINE}]
    assert chat(messages=messages)["messages"] == messages


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tools": [TOOL]}, {"tools": [FUNCTION]}),
        ({"tools": [TOOL], "tool_choice": {"type": "auto"}}, {"tool_choice": "auto"}),
        ({"tools": [TOOL], "tool_choice": {"type": "any"}}, {"tool_choice": "required"}),
        ({"tools": [TOOL], "tool_choice": {"type": "none"}}, {"tool_choice": "none"}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "weather"}},
            {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
        ),
        (
            {
                "tools": [TOOL],
                "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
            },
            {"parallel_tool_calls": False},
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 2000}},
            {"chat_template_kwargs": {"thinking": True, "enable_thinking": True}},
        ),
        (
            {"thinking": {"type": "disabled"}},
            {"chat_template_kwargs": {"thinking": False, "enable_thinking": False}},
        ),
        ({"output_config": {"effort": "high"}}, {"reasoning_effort": "high"}),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {
                        "name": "response",
                        "schema": {"type": "object"},
                        "strict": True,
                    },
                }
            },
        ),
        ({"temperature": 0.5, "top_p": 0.9, "top_k": 3}, {"temperature": 0.5, "top_k": 3}),
        ({"cache_salt": "t", "priority": 3}, {"cache_salt": "t", "priority": 3}),
        ({"metadata": {"user_id": "u"}, "betas": ["x"], "service_tier": "auto"}, {}),
    ],
)
def test_fields_in_a_chats_words(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    made = chat(**fields)
    assert {name: made[name] for name in expected} == expected
    assert not {"metadata", "betas"} & made.keys()


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"max_tokens": None}, "`max_tokens` is missing."),
        ({"max_tokens": 0}, "`max_tokens` must be from 1"),
        ({"messages": []}, "`messages` must be a list of at least one message"),
        ({"messages": [5]}, "`messages[0]` must be an object, not 5."),
        ({"messages": [{"role": "tool", "content": "x"}]}, "`messages[0].role` must be one of"),
        ({"messages": [{"role": "user"}]}, "`messages[0].content` must be a text or a list"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "`messages[0].content[0]` is a content block of type 'image', which is not supported: "
            "this gateway serves text models.",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t",
                "content": [{"type": "image"}]}]}]},
            "`messages[0].content[0].content[0]` is a content block of type 'image'",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "redacted_thinking"}]}]},
            "`messages[0].content[0]` is a content block of type 'redacted_thinking'",
        ),
        (
            {"messages": [{"role": "assistant", "content": [
                {"type": "tool_use", "id": "t", "name": "f", "input": 5}]}]},
            "`messages[0].content[0].input` must be an object, not 5.",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": ["text"]}]}]},
            "`messages[0].content[0]` is a content block of type ['text']",
        ),
        ({"system": 5}, "`system` must be a text or a list of content blocks, not 5."),
        ({"stop_sequences": [5]}, "`stop_sequences[0]` must be a text"),
        ({"stop_sequences": ["x"] * 33}, "`stop_sequences` must have at most 32 texts"),
        ({"thinking": {"type": "deep"}}, "`thinking.type` must be one of 'enabled'"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
         "`tools[0]` is Anthropic's tool 'web_search_20250305', which is not supported"),
        ({"tools": [{"name": "f"}]}, "`tools[0].input_schema` must be a JSON schema"),
        ({"tool_choice": {"type": "any"}}, "`tool_choice` asks for a tool, but `tools` has none."),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}},
         "`tool_choice.name` must be one of 'weather', not 'x'."),
        ({"mcp_servers": [{"url": "x"}]}, "`mcp_servers` is not supported"),
        ({"temperature": "hot"}, "`temperature` must be a number"),
        ({"output_config": {"format": {"type": "xml"}}}, "`output_config.format.type` must be"),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_refused_in_anthropics_form(
    gateway: Setup, fields: dict[str, Any], problem: str
) -> None:
    async with gateway.http.post(gateway.url + PATH, json=body(**fields)) as response:
        answer = await response.json()
        assert response.status == 400
        assert answer["request_id"] == response.headers["x-request-id"]
    assert answer["type"] == "error"
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["message"].startswith(problem)
    assert not gateway.prefill.requests


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "kind"),
    [
        ("POST", PATH, b"{", 400, "invalid_request_error"),
        ("POST", PATH, json.dumps(body(model="z")).encode(), 404, "not_found_error"),
        ("GET", PATH, b"", 405, "invalid_request_error"),
        ("POST", PATH, b" " * 2**21, 413, "request_too_large"),
        ("POST", "/models/z" + PATH, json.dumps(body()).encode(), 404, "not_found_error"),
        ("POST", PATH + "/count_tokens", b"{}", 400, "invalid_request_error"),
    ],
)
async def test_errors_before_the_body_was_read_have_anthropics_form_too(
    gateway: Setup, method: str, path: str, sent: bytes, status: int, kind: str
) -> None:
    async with gateway.http.request(method, gateway.url + path, data=io.BytesIO(sent)) as response:
        answer = await response.json()
    assert (response.status, answer["type"], answer["error"]["type"]) == (status, "error", kind)


async def test_a_worker_that_fails_is_told_as_anthropic_does(gateway: Setup) -> None:
    gateway.decode().plan.refuse = (503, {"error": {"message": "full"}})
    status, answer = await gateway.post(PATH, body())
    assert (status, answer["error"]["type"]) == (503, "overloaded_error")


async def test_a_stream_that_breaks_off_ends_in_an_error_event(gateway: Setup) -> None:
    gateway.decode().plan.die_after = 2
    async with gateway.http.post(gateway.url + PATH, json=body(stream=True)) as response:
        said = events(await response.text())
    assert said[-1]["type"] == "error"
    assert said[-1]["error"]["type"] == "overloaded_error"
    assert "decode worker 'a-0'" in said[-1]["error"]["message"]


async def test_the_models_own_url_takes_any_name_for_the_model(gateway: Setup) -> None:
    status, answer = await gateway.post("/models/b" + PATH, body(model="claude-sonnet-4-5"))
    assert (status, answer["model"]) == (200, "b")


async def test_a_salt_and_a_session_reach_the_workers(gateway: Setup) -> None:
    sent = body(cache_salt="tenant", session_id="talk", hints={"priority": 3})
    assert (await gateway.post(PATH, sent))[0] == 200
    (seen,) = gateway.decode().requests
    assert (seen["cache_salt"], seen["session_id"]) == ("tenant", "talk")


async def test_tokens_are_counted_by_a_worker(gateway: Setup) -> None:
    sent = body(system="be brief", tools=[TOOL], max_tokens=None)
    status, answer = await gateway.post(PATH + "/count_tokens", sent)
    assert (status, answer) == (200, {"input_tokens": 4})
    ((path, asked),) = gateway.decode().questions
    assert path == "/v1/tokenize"
    assert asked == {
        "messages": [{"role": "system", "content": "be brief"}, *USER],
        "tools": [FUNCTION],
    }


async def test_a_timeline_comes_with_a_message(gateway: Setup) -> None:
    headers = {"x-timeline": "1"}
    _, answer = await gateway.post(PATH, body(), headers=headers)
    assert answer["timeline"][0]["decode_worker"] == "a-0"
    sent = body(stream=True)
    async with gateway.http.post(gateway.url + PATH, json=sent, headers=headers) as response:
        last = events(await response.text())[-1]
    assert last["timeline"][0]["decode_worker"] == "a-0"
