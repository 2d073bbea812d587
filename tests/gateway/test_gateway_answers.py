"""What clients get when all goes well."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import openai
import pytest

from ps_sglang.gateway.state import GATEWAY
from tests.gateway.gateway_setup import Setup, running

CHAT = [{"role": "user", "content": "one two three"}]
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": CHAT},
    "/v1/completions": {"prompt": "one two three"},
    "/generate": {"text": "one two three"},
}


Connect = Callable[..., openai.AsyncOpenAI]


@pytest.fixture
async def client(gateway: Setup) -> AsyncIterator[Connect]:
    """Makes OpenAI clients of the gateway, or of one model's path."""
    made = []

    def connect(path: str = "") -> openai.AsyncOpenAI:
        url = f"{gateway.url}{path}/v1"
        made.append(openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0))
        return made[-1]

    yield connect
    for one in made:
        await one.close()


def text_of(route: str, answer: Any) -> str:
    if route == "/generate":
        return str(answer["text"])
    choice = answer["choices"][0]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


async def events(gateway: Setup, path: str, body: dict[str, Any]) -> list[Any]:
    """The payloads of a stream, without its `[DONE]`, which must be there once, at the end."""
    async with gateway.http.post(gateway.url + path, json={**body, "stream": True}) as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")
        lines = [line for line in (await response.text()).split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("decoder", ["a", "b"])
async def test_the_model_is_chosen_by_body_or_by_path(
    gateway: Setup, route: str, decoder: str
) -> None:
    by_body = await gateway.post(route, {**ROUTES[route], "model": decoder})
    by_path = await gateway.post(f"/models/{decoder}{route}", ROUTES[route])
    for status, answer in (by_body, by_path):
        assert status == 200
        assert text_of(route, answer) == f"{decoder}-x-0 {decoder}-x-1 {decoder}-x-2 "
    assert len(gateway.decode(decoder).requests) == 2
    assert gateway.pending() == 0


@pytest.mark.parametrize("route", ROUTES)
async def test_the_only_decoder_needs_no_name(route: str) -> None:
    async with running(decoders=("solo",)) as gateway:
        status, answer = await gateway.post(route, ROUTES[route])
        assert (status, text_of(route, answer)) == (200, "solo-x-0 solo-x-1 solo-x-2 ")


async def test_both_legs_get_the_body_and_one_room(gateway: Setup) -> None:
    body = {"model": "a", "messages": CHAT, "temperature": 0.25, "logit_bias": {"5": -1.5}}
    await gateway.post("/v1/chat/completions", body)
    await gateway.post("/v1/chat/completions", body)
    assert gateway.prefill.requests == gateway.decode().requests
    for sent in gateway.prefill.requests:
        assert sent.items() >= body.items()
        assert (sent["bootstrap_host"], sent["bootstrap_port"]) == ("127.0.0.1", 9000)
    rooms = {request["bootstrap_room"] for request in gateway.prefill.requests}
    assert len(rooms) == 2
    assert all(0 <= room < 2**63 for room in rooms)


async def test_the_prefill_leg_is_not_asked_about_the_output(gateway: Setup) -> None:
    asked = {"logprobs": True, "top_logprobs": 2, "stream": True}
    await events(gateway, "/v1/chat/completions", {"model": "a", "messages": CHAT, **asked})
    assert gateway.decode().requests[0].items() >= asked.items()
    assert not asked.keys() & gateway.prefill.requests[0].keys()


@pytest.mark.parametrize("path", ["", "/models/a"])
async def test_openai_client(client: Connect, path: str) -> None:
    openai_client = client(path)
    chat = await openai_client.chat.completions.create(
        model="a", messages=[{"role": "user", "content": "one two"}], max_tokens=2
    )
    assert chat.choices[0].message.content == "a-x-0 a-x-1 "
    assert chat.usage is not None
    assert (chat.usage.prompt_tokens, chat.usage.completion_tokens) == (2, 2)
    stream = await openai_client.chat.completions.create(
        model="a",
        messages=[{"role": "user", "content": "one two"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == "a-x-0 a-x-1 a-x-2 "
    assert chunks[-1].usage is not None
    completion = await openai_client.completions.create(model="a", prompt="one", max_tokens=1)
    assert completion.choices[0].text == "a-x-0 "


async def test_openai_client_lists_models(client: Connect) -> None:
    assert [model.id async for model in client().models.list()] == ["a", "b"]
    assert [model.id async for model in client("/models/b").models.list()] == ["b"]
    card = await client().models.retrieve("b")
    assert card.id == "b"
    with pytest.raises(openai.NotFoundError):
        await client().models.retrieve("c")
    with pytest.raises(openai.NotFoundError):
        await client("/models/b").models.retrieve("a")


async def test_n_samples_are_merged(client: Connect) -> None:
    answer = await client().chat.completions.create(
        model="a", messages=[{"role": "user", "content": "one two"}], n=3, seed=7, max_tokens=2
    )
    said = [(choice.index, choice.message.content) for choice in answer.choices]
    assert said == [(i, f"a-{7 + i}-0 a-{7 + i}-1 ") for i in range(3)]
    usage = answer.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (2, 6, 8)
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 1


async def test_n_samples_are_streamed_interleaved(gateway: Setup) -> None:
    gateway.decode().plan.step = asyncio.Semaphore(9)
    body = {"model": "a", "messages": CHAT, "n": 3, "seed": 7}
    body["stream_options"] = {"include_usage": True}
    chunks = await events(gateway, "/v1/chat/completions", body)
    assert len({chunk["id"] for chunk in chunks}) == 1
    said = {0: "", 1: "", 2: ""}
    for chunk in chunks[:-1]:
        for choice in chunk["choices"]:
            said[choice["index"]] += choice["delta"].get("content") or ""
    assert said == {i: f"a-{7 + i}-0 a-{7 + i}-1 a-{7 + i}-2 " for i in range(3)}
    usage = chunks[-1]["usage"]
    assert chunks[-1]["choices"] == []
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 9)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 1}


async def test_a_stream_without_usage_has_no_usage_chunk(gateway: Setup) -> None:
    chunks = await events(gateway, "/v1/completions", {"model": "a", "prompt": "x", "n": 2})
    assert all(chunk["choices"] for chunk in chunks)


async def test_later_samples_wait_for_the_first_ones_prefill(gateway: Setup) -> None:
    gateway.decode().plan.hang = True  # so no handoff ends
    request = asyncio.create_task(
        gateway.post("/v1/completions", {"model": "a", "prompt": ["x", "y"], "n": 2})
    )
    await gateway.prefill.saw(2)
    await gateway.decode().saw(2)
    assert {body["prompt"] for body in gateway.prefill.requests} == {"x", "y"}
    request.cancel()
    await gateway.decode().saw_hang_up(2)
    assert len(gateway.prefill.requests) == 2


async def test_a_prompt_that_is_prefilled_is_no_load_any_more(gateway: Setup) -> None:
    gateway.decode().plan.step = asyncio.Semaphore(0)
    request = asyncio.create_task(
        gateway.post("/v1/completions", {"model": "a", "prompt": "x", "n": 2})
    )
    await gateway.prefill.saw(2)  # so the first sample is prefilled, but not answered
    prefill, decode = list(gateway.app[GATEWAY].pool)[:2]
    assert prefill.load.requests <= 1
    assert decode.load.requests == 2
    request.cancel()
    await gateway.decode().saw_hang_up()


@pytest.mark.parametrize("prompts", [["one", "two words"], [[1], [2, 3]]])
async def test_list_prompts(gateway: Setup, prompts: list[Any]) -> None:
    body = {"model": "a", "prompt": prompts, "n": 2, "seed": 0, "max_tokens": 1}
    status, answer = await gateway.post("/v1/completions", body)
    assert status == 200
    said = [(choice["index"], choice["text"]) for choice in answer["choices"]]
    assert said == [(0, "a-0-0 "), (1, "a-1-0 "), (2, "a-0-0 "), (3, "a-1-0 ")]
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["usage"]["completion_tokens"] == 4
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    sent = [request["prompt"] for request in gateway.decode().requests]
    assert sorted(sent, key=str) == sorted([*prompts, *prompts], key=str)


async def test_one_list_of_token_ids_is_one_prompt(gateway: Setup) -> None:
    status, answer = await gateway.post("/v1/completions", {"model": "a", "prompt": [1, 2, 3]})
    assert (status, answer["usage"]["prompt_tokens"]) == (200, 3)


async def test_streamed_list_prompts(gateway: Setup) -> None:
    body = {"model": "a", "prompt": ["one", "two"], "stream_options": {"include_usage": True}}
    chunks = await events(gateway, "/v1/completions", body)
    said = {0: "", 1: ""}
    for chunk in chunks[:-1]:
        said[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert said == {0: "a-x-0 a-x-1 a-x-2 ", 1: "a-x-0 a-x-1 a-x-2 "}
    assert chunks[-1]["usage"]["prompt_tokens"] == 2
    assert chunks[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}


@pytest.mark.parametrize(
    ("prompt", "shape"),
    [
        ({"text": ["one", "two words"]}, [1, 2]),
        ({"input_ids": [[4], [5, 6]]}, [1, 2]),
        ({"text": ["one"]}, [1]),
    ],
)
async def test_batched_generate_gives_a_list(
    gateway: Setup, prompt: dict[str, Any], shape: list[int]
) -> None:
    status, answer = await gateway.post("/generate", {**prompt, "model": "a"})
    assert status == 200
    assert [one["meta_info"]["prompt_tokens"] for one in answer] == shape


async def test_generate_with_n_gives_a_list(gateway: Setup) -> None:
    params = {"n": 3, "sampling_seed": 2**63 - 2, "max_new_tokens": 1}
    _, answer = await gateway.post(
        "/generate", {"model": "a", "text": "x", "sampling_params": params}
    )
    seeds = [2**63 - 2, 2**63 - 1, -(2**63)]
    assert [one["text"] for one in answer] == [f"a-{seed}-0 " for seed in seeds]


async def test_batched_generate_takes_fields_per_prompt(gateway: Setup) -> None:
    body = {
        "model": "a",
        "text": ["x", "y"],
        "rid": ["first", "second"],
        "sampling_params": [{"max_new_tokens": 1}, {"max_new_tokens": 2}],
        "cache_salt": ["s", "t"],
        "return_logprob": [True, False],
    }
    _, answer = await gateway.post("/generate", body)
    ids = [one["meta_info"]["id"] for one in answer]
    assert [name.split("-")[0] for name in ids] == ["first", "second"]
    assert [one["text"] for one in answer] == ["a-x-0 ", "a-x-0 a-x-1 "]
    sent = {request["text"]: request for request in gateway.decode().requests}
    assert (sent["x"]["cache_salt"], sent["y"]["cache_salt"]) == ("s", "t")
    assert (sent["x"]["return_logprob"], sent["y"]["return_logprob"]) == (True, False)


async def test_no_request_id_starts_another(gateway: Setup) -> None:
    """SGLang aborts by prefix: with the client's own ids, ending `r` would end `r2` as well."""
    for rid in ("r", "r", "r2", None):
        params = {"n": 6, "max_new_tokens": 1}
        body = {"model": "a", "text": ["x", "y"], "rid": rid, "sampling_params": params}
        await gateway.post("/generate", body)
    ids = [request["rid"] for request in gateway.decode().requests]
    assert len(ids) == 48
    assert not [(a, b) for a in ids for b in ids if a is not b and b.startswith(a)]


async def test_streamed_generate(gateway: Setup) -> None:
    chunks = await events(gateway, "/generate", {"model": "a", "text": "x"})
    assert [chunk["text"] for chunk in chunks][-1] == "a-x-0 a-x-1 a-x-2 "
    assert all("index" not in chunk for chunk in chunks)
    chunks = await events(gateway, "/generate", {"model": "a", "text": ["x", "y"]})
    last = {chunk["index"]: chunk["text"] for chunk in chunks}
    assert last == {0: "a-x-0 a-x-1 a-x-2 ", 1: "a-x-0 a-x-1 a-x-2 "}


async def test_null_means_not_given(gateway: Setup) -> None:
    body = {"model": "a", "prompt": "x", "n": None, "stream": None, "seed": None}
    body |= {"max_tokens": None, "best_of": None, "lora_path": None}
    assert (await gateway.post("/v1/completions", body))[0] == 200


@pytest.mark.parametrize("route", ROUTES)
async def test_chunks_are_passed_on_as_they_come(gateway: Setup, route: str) -> None:
    # The engine gives no further token before this one has been seen here.
    step = gateway.decode().plan.step = asyncio.Semaphore(1)
    body = {**ROUTES[route], "model": "a", "stream": True}
    async with gateway.http.post(gateway.url + route, json=body) as response:
        for number in range(3):
            while f"a-x-{number} " not in (await response.content.readuntil(b"\n\n")).decode():
                pass
            step.release()
        rest = await response.text()
    assert rest.endswith("data: [DONE]\n\n")


async def test_single_answers_are_passed_on_byte_for_byte(gateway: Setup) -> None:
    content = b'{"choices": [],  "odd":1.10,\t"x": "\\u00e9 \\"abort\\""}'
    gateway.decode().plan.garbage = content
    body = {"model": "a", "prompt": "x"}
    async with gateway.http.post(gateway.url + "/v1/completions", json=body) as response:
        assert await response.read() == content


async def test_request_id_is_echoed_or_made(gateway: Setup) -> None:
    body = {"model": "a", "prompt": "x"}
    url = gateway.url + "/v1/completions"
    async with gateway.http.post(url, json=body, headers={"x-request-id": "mine"}) as response:
        assert response.headers["x-request-id"] == "mine"
    async with gateway.http.post(url, json={**body, "stream": True}) as response:
        assert response.headers["x-request-id"]
    async with gateway.http.get(gateway.url + "/nowhere") as response:
        assert response.headers["x-request-id"]


async def test_a_clients_key_is_not_for_the_workers(gateway: Setup, client: Connect) -> None:
    await client().completions.create(model="a", prompt="x")
    for worker in (gateway.prefill, gateway.decode()):
        assert "Bearer k" not in worker.headers[0].values()
