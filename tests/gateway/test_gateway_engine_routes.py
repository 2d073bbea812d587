"""SGLang's routes that generate nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ps_sglang.gateway.state import GATEWAY
from tests.gateway.gateway_setup import Setup
from tests.support.standin_engine import VOCABULARY

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_tokens_of_texts_chats_and_back(gateway: Setup, prefix: str) -> None:
    post = gateway.post
    assert await post(prefix + "/tokenize", {"prompt": "one two"}) == (
        200,
        {"tokens": [0, 1], "count": 2, "max_model_len": 9},
    )
    batch = {"model": "b", "prompt": ["x", "y z"], "add_special_tokens": False}
    assert (await post(prefix + "/tokenize", batch))[1]["count"] == [1, 2]
    chat = {"messages": [{"role": "user", "content": "a b c"}], "tools": [TOOL], "stream": None}
    assert (await post(prefix + "/tokenize", chat))[1]["count"] == 3
    assert await post(prefix + "/detokenize", {"tokens": [5, 6]}) == (200, {"text": "5 6"})
    assert gateway.decode("b").questions == [
        ("/v1/tokenize", {"prompt": ["x", "y z"], "add_special_tokens": False})
    ]


async def test_parsers_are_a_workers(gateway: Setup) -> None:
    sent = {"text": "x", "tools": [TOOL], "tool_call_parser": "qwen25"}
    assert await gateway.post("/parse_function_call", sent) == (
        200,
        {"normal_text": "x", "calls": []},
    )
    asked = {"text": "why</think>so", "reasoning_parser": "deepseek-r1"}
    assert await gateway.post("/models/b/separate_reasoning", asked) == (
        200,
        {"reasoning_text": "why", "text": "so"},
    )
    assert gateway.decode("a").questions == [("/parse_function_call", sent)]
    assert gateway.decode("b").questions == [("/separate_reasoning", asked)]


@pytest.mark.parametrize(
    ("path", "sent", "problem"),
    [
        ("/tokenize", {}, "Send exactly one of `prompt` and `messages`."),
        ("/tokenize", {"prompt": "x", "messages": []}, "Send exactly one of"),
        ("/tokenize", {"prompt": [5]}, "`prompt[0]` must be a text, not 5."),
        ("/tokenize", {"messages": [5]}, "`messages[0]` must be an object"),
        ("/tokenize", {"prompt": "x", "add_special_tokens": 1}, "`add_special_tokens` must be"),
        ("/detokenize", {}, "`tokens` is missing."),
        ("/detokenize", {"tokens": "x"}, "`tokens` must be a list of token ids"),
        ("/detokenize", {"tokens": [[1], 5]}, "`tokens[1]` must be a list of token ids, not 5."),
        ("/detokenize", {"tokens": [1, -1]}, "`tokens` has the token id -1 at place 1"),
        ("/detokenize", {"tokens": [[VOCABULARY]]}, f"`tokens[0]` has the token id {VOCABULARY}"),
        ("/parse_function_call", {"text": "x"}, "`tool_call_parser` is missing."),
        ("/separate_reasoning", {"reasoning_parser": "qwen3"}, "`text` is missing."),
        ("/separate_reasoning", {"text": "x", "reasoning_parser": "p"}, "`reasoning_parser` must"),
        ("/abort_request", {}, "`rid` must be the `rid` with which a request was sent"),
        ("/abort_request", {"rid": ["x"]}, "`rid` must be a text"),
        ("/abort_request", {"abort_all": True}, "`abort_all` is not supported"),
    ],
)
async def test_wrong_questions_reach_no_worker(
    gateway: Setup, path: str, sent: dict[str, Any], problem: str
) -> None:
    status, answer = await gateway.post(path, sent)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert answer["error"]["message"].startswith(problem)
    assert not gateway.decode().questions


async def test_an_unknown_model_is_told(gateway: Setup) -> None:
    status, answer = await gateway.post("/tokenize", {"model": "z", "prompt": "x"})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


async def test_what_a_worker_cannot_do_is_the_clients_error(gateway: Setup) -> None:
    gateway.decode().confused = True
    sent = {"text": "x", "reasoning_parser": "qwen3"}
    status, answer = await gateway.post("/separate_reasoning", sent)
    assert status == 400
    assert answer["error"]["message"].startswith("The worker could not do this: ")


async def test_the_next_worker_is_asked_where_one_is_gone(replicated: Setup) -> None:
    first, second = replicated.cluster.decode["a"]
    await first.stop()
    status, answer = await replicated.post("/tokenize", {"prompt": "one two"})
    assert (status, answer["count"]) == (200, 2)
    assert len(second.questions) == 1


async def abort(gateway: Setup, rid: str) -> None:
    async with gateway.http.post(gateway.url + "/abort_request", json={"rid": rid}) as response:
        assert (response.status, await response.read()) == (200, b"")


async def test_an_abort_ends_what_the_clients_id_names_on_both_workers(gateway: Setup) -> None:
    gateway.decode().plan.step = asyncio.Semaphore(0)
    sent = {"model": "a", "prompt": ["one", "two"], "rid": "mine"}
    task = asyncio.create_task(gateway.post("/v1/completions", sent))
    await gateway.decode().saw(2)
    await abort(gateway, "mine")
    status, answer = await task
    assert (status, answer["error"]["code"]) == (499, "request_aborted")
    await gateway.decode().saw_hang_up(2)
    assert {rid.rpartition("-")[0].partition("-")[0] for rid in gateway.decode().aborted} == {
        "mine"
    }
    assert gateway.pending() == 0


@pytest.mark.parametrize(("rid", "asked"), [("mine", "min"), (None, "ps"), ("mine", "mine-")])
async def test_an_abort_cannot_hit_others(gateway: Setup, rid: str | None, asked: str) -> None:
    step = gateway.decode().plan.step = asyncio.Semaphore(0)
    sent = {"model": "a", "prompt": "one", "rid": rid}
    task = asyncio.create_task(gateway.post("/v1/completions", sent))
    await gateway.decode().saw(1)
    await abort(gateway, asked)
    (running,) = gateway.app[GATEWAY].dispatcher._running
    assert running._failure is None
    for _ in range(3):
        step.release()
    assert (await task)[0] == 200


async def test_an_engines_id_aborts_nothing(gateway: Setup) -> None:
    """It begins with the client's, but is the gateway's own."""
    step = gateway.decode().plan.step = asyncio.Semaphore(0)
    sent = {"model": "a", "prompt": "one", "rid": "mine"}
    task = asyncio.create_task(gateway.post("/v1/completions", sent))
    await gateway.decode().saw(1)
    await abort(gateway, gateway.decode().requests[0]["rid"])
    for _ in range(3):
        step.release()
    assert (await task)[0] == 200


async def get(gateway: Setup, path: str) -> tuple[int, Any]:
    async with gateway.http.get(gateway.url + path) as response:
        return response.status, await response.json()


async def test_loads_of_all_workers(gateway: Setup) -> None:
    status, answer = await get(gateway, "/v1/loads?include=core")
    assert (status, answer["version"]) == (200, "0.5.23")
    assert [(load["worker"], load["decoder"]) for load in answer["loads"]] == [
        ("prefill-0", None), ("a-0", "a"), ("b-0", "b"),
    ]  # fmt: skip
    await gateway.decode("b").stop()
    _, answer = await get(gateway, "/v1/loads")
    assert [load["worker"] for load in answer["loads"]] == ["prefill-0", "a-0"]
    for wrong in ("include=nonsense", "include=core,", "format=prometheus", "dp_rank=x"):
        status, answer = await get(gateway, f"/v1/loads?{wrong}")
        assert (status, answer["error"]["param"]) == (400, wrong.partition("=")[0])
    status, answer = await get(gateway, "/v1/loads?dp_rank=7")
    assert (status, answer["error"]["message"]) == (400, "There is no such rank")


async def test_one_worker(gateway: Setup) -> None:
    status, answer = await get(gateway, "/workers/a-0")
    assert (status, answer["name"], answer["decoder"]) == (200, "a-0", "a")
    status, answer = await get(gateway, "/workers/z")
    assert (status, answer["error"]["code"]) == (404, "worker_not_found")


async def test_readiness_is_false_while_nothing_can_answer(gateway: Setup) -> None:
    assert (await get(gateway, "/readiness"))[0] == 200
    await gateway.post("/workers/a-0/drain", {})
    assert (await get(gateway, "/readiness"))[1]["decoders"] == ["b"]
    assert (await get(gateway, "/models/a/readiness"))[0] == 503
    await gateway.post("/workers/b-0/drain", {})
    assert (await get(gateway, "/readiness"))[0] == 503
    assert (await get(gateway, "/liveness"))[0] == 200
    await gateway.post("/workers/b-0/resume", {})
    assert (await get(gateway, "/readiness"))[0] == 200


async def test_health_generate_asks_the_engines(gateway: Setup) -> None:
    assert (await get(gateway, "/health_generate"))[0] == 200
    gateway.decode("b").ready = False
    assert (await get(gateway, "/health_generate"))[0] == 503
    assert (await get(gateway, "/models/a/health_generate"))[0] == 200
