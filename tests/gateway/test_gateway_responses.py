"""OpenAI's Responses API: what reaches engines, what comes back, and what is kept."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ps_sglang.gateway.bodies.checks import Limits
from ps_sglang.gateway.bodies.responses_answer import ResponsesAnswer, response_id
from ps_sglang.gateway.bodies.responses_request import ResponsesRequest
from ps_sglang.gateway.errors import GatewayError
from ps_sglang.gateway.routes.response_store import ResponseStore
from tests.gateway.gateway_setup import Setup
from tests.gateway.test_gateway_messages import SPEECH, events
from tests.support.standin_engine import CONTEXT_LENGTH, VOCABULARY

PATH = "/v1/responses"
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "a", "input": "hi there", **fields}


def chat(**fields: Any) -> dict[str, Any]:
    request = ResponsesRequest(body(**fields), Limits(VOCABULARY, CONTEXT_LENGTH))
    return request.chat([], "resp_1")


async def get(gateway: Setup, id: str) -> tuple[int, Any]:
    async with gateway.http.get(f"{gateway.url}{PATH}/{id}") as response:
        return response.status, await response.json()


async def test_a_response_is_answered_and_kept(gateway: Setup) -> None:
    sent = body(instructions="be brief", max_output_tokens=2, metadata={"k": "v"})
    status, answer = await gateway.post(PATH, sent)
    assert status == 200
    assert (answer["status"], answer["incomplete_details"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
    )
    (item,) = answer["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "incomplete")
    assert item["content"] == [{"type": "output_text", "text": "a-x-0 a-x-1 ", "annotations": []}]
    assert answer["usage"] == {
        "input_tokens": 4,
        "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 6,
    }
    assert (answer["instructions"], answer["metadata"], answer["model"]) == (
        "be brief",
        {"k": "v"},
        "a",
    )
    (seen,) = gateway.decode().requests
    assert seen["max_completion_tokens"] == 2
    assert seen["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi there"},
    ]
    assert await get(gateway, answer["id"]) == (200, answer)


async def test_a_stream_has_openais_events_in_order(gateway: Setup) -> None:
    plan = gateway.decode().plan
    plan.deltas, plan.finish = SPEECH, {"finish_reason": "tool_calls"}
    sent = body(stream=True, tools=[TOOL])
    async with gateway.http.post(gateway.url + PATH, json=sent) as response:
        said = events(await response.text())
    assert [one["sequence_number"] for one in said] == list(range(len(said)))
    kinds = [one["type"].removeprefix("response.") for one in said]
    assert kinds == [
        "created", "in_progress",
        "output_item.added", "content_part.added",
        "reasoning_text.delta", "reasoning_text.delta", "reasoning_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "content_part.added",
        "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    assert said[0]["response"]["status"] == "in_progress"
    assert said[0]["response"]["output"] == []
    last = said[-1]["response"]
    assert [item["type"] for item in last["output"]] == [
        "reasoning", "message", "function_call", "function_call",
    ]  # fmt: skip
    assert last["output"][0]["content"] == [{"type": "reasoning_text", "text": "I must ask."}]
    call = last["output"][2]
    assert (call["call_id"], call["name"], call["arguments"]) == (
        "call_1", "weather", '{"city": "Rome"}',
    )  # fmt: skip
    places = [one["output_index"] for one in said if one["type"].endswith("output_item.added")]
    assert places == [0, 1, 2, 3]
    whole = await gateway.post(PATH, body(tools=[TOOL]))
    for mine, other in zip(last["output"], whole[1]["output"], strict=True):
        assert {**mine, "id": 0} == {**other, "id": 0}, "whole and streamed say the same"


async def test_a_response_is_continued_with_all_that_was_said(gateway: Setup) -> None:
    plan = gateway.decode().plan
    plan.deltas, plan.finish = SPEECH, {"finish_reason": "tool_calls"}
    _, first = await gateway.post(PATH, body(instructions="one", tools=[TOOL]))
    plan.deltas, plan.finish = [{"content": "sun"}], {"finish_reason": "stop"}
    outputs = [
        {"type": "function_call_output", "call_id": "call_1", "output": "warm"},
        {
            "type": "function_call_output",
            "call_id": "call_2",
            "output": [{"type": "input_text", "text": "dry"}],
        },
    ]
    sent = body(input=outputs, previous_response_id=first["id"], instructions="two")
    _, second = await gateway.post(PATH, sent)
    last = {"input": "thanks", "previous_response_id": second["id"]}
    status, third = await gateway.post(PATH, body(**last))
    assert (status, third["previous_response_id"]) == (200, second["id"])
    call = {"city": "Rome"}
    said = {
        "role": "assistant",
        "content": "Let me see.",
        "reasoning_content": "I must ask.",
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "weather", "arguments": json.dumps(call)},
            },
            {
                "id": "call_2",
                "type": "function",
                "function": {"name": "weather", "arguments": "{}"},
            },
        ],
    }
    talk = [
        {"role": "user", "content": "hi there"},
        said,
        {"role": "tool", "tool_call_id": "call_1", "content": "warm"},
        {"role": "tool", "tool_call_id": "call_2", "content": "dry"},
    ]
    _, second_seen, third_seen = gateway.decode().requests
    assert second_seen["messages"] == [{"role": "system", "content": "two"}, *talk]
    assert third_seen["messages"] == [
        *talk,
        {"role": "assistant", "content": "sun"},
        {"role": "user", "content": "thanks"},
    ], "instructions are not carried over"


def test_an_assistants_items_become_one_message() -> None:
    sent = [
        {"role": "developer", "content": "rules"},
        {"role": "user", "content": [{"type": "input_text", "text": "Rome?"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "I ask."}],
        },
        {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "sun"},
    ]
    assert chat(input=sent, instructions="be brief")["messages"] == [
        {"role": "system", "content": "be brief\n\nrules"},
        {"role": "user", "content": "Rome?"},
        {
            "role": "assistant",
            "reasoning_content": "Hm",
            "content": "I ask.",
            "tool_calls": [
                {
                    "id": "c",
                    "type": "function",
                    "function": {"name": "weather", "arguments": "{}"},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c", "content": "sun"},
    ]


FUNCTION = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object"}, "strict": True},
}
SCHEMA = {"type": "json_schema", "name": "s", "schema": {"type": "object"}, "strict": True}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tools": [TOOL]}, {"tools": [FUNCTION]}),
        ({"tools": [TOOL], "tool_choice": "required"}, {"tool_choice": "required"}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "name": "weather"}},
            {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
        ),
        (
            {"text": {"format": SCHEMA, "verbosity": "low"}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
        (
            {"text": {"format": {"type": "json_object"}}},
            {"response_format": {"type": "json_object"}},
        ),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}),
        (
            {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
            {"logprobs": True, "top_logprobs": 2},
        ),
        ({"cache_salt": "t", "stop": "x", "top_k": 5}, {"cache_salt": "t", "stop": "x"}),
        ({"stream": True}, {"stream_options": {"include_usage": True}}),
        ({"background": False, "truncation": "disabled", "user": "u"}, {"rid": "resp_1"}),
    ],
)
def test_fields_in_a_chats_words(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    made = chat(**fields)
    assert {name: made[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"input": None}, "`input` must be a text or a list of items, not null"),
        ({"input": []}, "`input` must be a text or a list of items, not an empty list"),
        ({"input": [5]}, "`input[0]` must be an object, not 5."),
        ({"input": [{"role": "tool", "content": ""}]}, "`input[0].role` must be one of"),
        ({"input": [{"role": "user"}]}, "`input[0].content` must be a text or a list of parts"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "`input[0].content[0]` is a part of type 'input_image', which is not supported: this",
        ),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "`input[0]` is an item of type"),
        ({"input": [{"type": ["x"]}]}, "`input[0]` is an item of type a list"),
        ({"input": [{"type": "function_call", "call_id": "c"}]}, "`input[0].name` must be a text"),
        ({"input": [{"role": "user", "content": [{"type": {}}]}]}, "`input[0].content[0]` is a"),
        ({"background": True}, "`background` is not supported"),
        ({"conversation": "c"}, "`conversation` is not supported"),
        ({"prompt": {"id": "p"}}, "`prompt` is not supported"),
        ({"truncation": "auto"}, "`truncation` must be 'disabled'"),
        ({"tools": [{"type": "web_search"}]}, "`tools[0]` is a tool of type 'web_search', which"),
        ({"tools": [{"type": "function"}]}, "`tools[0].name` must be a text"),
        ({"tool_choice": {"type": "web_search"}}, "`tool_choice` must be 'auto'"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "`tool_choice.name` must be"),
        ({"text": {"format": {"type": "xml"}}}, "`text.format.type` must be one of"),
        ({"text": {"format": {"type": "json_schema"}}}, "`text.format.name` is missing."),
        ({"include": ["file_search_call.results"]}, "`include[0]` must be one of"),
        ({"metadata": {"k": 5}}, "`metadata.k` must be a text"),
        ({"metadata": {str(one): "" for one in range(17)}}, "`metadata` must have at most 16"),
        ({"max_output_tokens": 0}, "`max_output_tokens` must be from 1"),
        ({"previous_response_id": "resp_z"}, "There is no response 'resp_z': it was not stored"),
        ({"model": "z"}, "The model 'z' does not exist"),
    ],
)
async def test_what_cannot_be_is_refused(
    gateway: Setup, fields: dict[str, Any], problem: str
) -> None:
    status, answer = await gateway.post(PATH, body(**fields))
    assert status in (400, 404)
    assert answer["error"]["message"].startswith(problem)
    assert not gateway.prefill.requests


async def test_logprobs_come_with_the_text(gateway: Setup) -> None:
    answer = ResponsesAnswer("resp_1", "a", {}, lambda: None)
    logprob = {"token": "x", "logprob": -1.0, "bytes": [120], "top_logprobs": []}
    choice = {"delta": {"content": "x"}, "logprobs": {"content": [logprob]}}
    said = answer.events({"choices": [choice]}) + answer.end()
    delta = next(one for one in said if one["type"] == "response.output_text.delta")
    assert delta["logprobs"] == [logprob]
    assert answer.response["output"][0]["content"][0]["logprobs"] == [logprob]


async def test_a_response_in_progress_is_read_and_cancelled(gateway: Setup) -> None:
    step = gateway.decode().plan.step = asyncio.Semaphore(1)
    async with gateway.http.post(gateway.url + PATH, json=body(stream=True)) as response:
        created = json.loads((await response.content.readuntil(b"\n\n")).split(b"data: ")[1])
        id = created["response"]["id"]
        assert (await get(gateway, id))[1]["status"] == "in_progress"
        status, cancelled = await gateway.post(f"{PATH}/{id}/cancel", {})
        assert (status, cancelled["status"]) == (200, "cancelled")
        last = events((await response.content.read()).decode())[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "cancelled")
    assert last["response"]["output"][0]["status"] == "incomplete"
    await gateway.decode().saw_hang_up()
    assert await get(gateway, id) == (200, last["response"])
    again = await gateway.post(f"{PATH}/{id}/cancel", {})
    assert again == (200, last["response"]), "what has ended stays as it is"
    status, answer = await gateway.post(PATH, body(previous_response_id=id))
    assert status == 400
    assert "it is cancelled" in answer["error"]["message"]
    assert step.locked()


async def test_a_client_that_hangs_up_leaves_a_cancelled_response(gateway: Setup) -> None:
    gateway.decode().plan.step = asyncio.Semaphore(1)
    async with gateway.http.post(gateway.url + PATH, json=body(stream=True)) as response:
        created = json.loads((await response.content.readuntil(b"\n\n")).split(b"data: ")[1])
    response.close()
    await gateway.decode().saw_hang_up()
    assert (await get(gateway, created["response"]["id"]))[1]["status"] == "cancelled"


async def test_a_stream_that_breaks_off_is_a_failed_response(gateway: Setup) -> None:
    gateway.decode().plan.die_after = 1
    async with gateway.http.post(gateway.url + PATH, json=body(stream=True)) as response:
        last = events(await response.text())[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert "decode worker 'a-0'" in last["response"]["error"]["message"]


async def test_what_is_not_stored_is_not_there(gateway: Setup) -> None:
    _, answer = await gateway.post(PATH, body(store=False))
    assert (await get(gateway, answer["id"]))[0] == 404


async def test_a_deleted_response_is_gone(gateway: Setup) -> None:
    _, answer = await gateway.post(PATH, body())
    id = answer["id"]
    async with gateway.http.delete(f"{gateway.url}{PATH}/{id}") as response:
        assert await response.json() == {"id": id, "object": "response", "deleted": True}
    assert (await get(gateway, id))[0] == 404


def kept(store: ResponseStore, text: str, previous: str | None = None) -> str:
    answer = ResponsesAnswer(response_id(), "a", {}, lambda: None)
    answer.whole({"choices": [{"message": {"content": text}}]})
    store.keep("me", answer, [{"role": "user", "content": text}], previous)
    id: str = answer.response["id"]
    return id


def test_the_least_used_response_goes_first() -> None:
    store = ResponseStore(most=2)
    first, second = kept(store, "1"), kept(store, "2")
    store.get(first, "me")
    third = kept(store, "3")
    store.get(first, "me")
    store.get(third, "me")
    with pytest.raises(GatewayError, match="newer ones took its place"):
        store.get(second, "me")


def test_responses_are_bounded_in_bytes() -> None:
    store = ResponseStore(most_bytes=5000)
    ids = [kept(store, "x" * 500) for _ in range(20)]
    left = []
    for id in ids:
        try:
            store.get(id, "me")
        except GatewayError:
            continue
        left.append(id)
    assert 0 < len(left) < 5
    assert left == ids[-len(left) :]
    store.delete(left[-1], "me")
    assert store._bytes > 0
    for id in left[:-1]:
        store.delete(id, "me")
    assert store._bytes == 0


def test_a_conversation_whose_beginning_is_gone_is_told() -> None:
    store = ResponseStore(most=2)
    first = kept(store, "1")
    second = kept(store, "2", first)
    kept(store, "other")
    with pytest.raises(GatewayError, match=f"no response '{first}', which '{second}' continues"):
        store.history(second, "me")


def test_a_conversation_that_goes_on_stays_whole() -> None:
    store = ResponseStore(most=3)
    first = kept(store, "1")
    second = kept(store, "2", first)
    kept(store, "other")
    store.history(second, "me")
    kept(store, "another")
    assert [one["content"] for one in store.history(second, "me")] == ["1", "1", "2", "2"]
