"""Streams whose decode worker is lost: another one goes on as if nothing had happened."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from ps_sglang.gateway.workers.probe import ProbeTiming
from ps_sglang.output_ids import PARAM
from tests.gateway.gateway_setup import NEVER, QUICK, Setup, running
from tests.gateway.test_gateway_failures import ROUTES
from tests.gateway.test_gateway_messages import SPEECH
from tests.support.standin_engine import Plan, Worker

Json = dict[str, Any]
TOKENS = 6
HAD = 2
"""Tokens that a client has when the worker dies."""
LENGTHS: dict[str, Json] = {
    "/v1/chat/completions": {"max_tokens": TOKENS, "stream_options": {"include_usage": True}},
    "/v1/completions": {"max_tokens": TOKENS, "stream_options": {"include_usage": True}},
    "/generate": {"sampling_params": {"max_new_tokens": TOKENS}},
    "/v1/messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": TOKENS},
    "/v1/responses": {"input": "x", "max_output_tokens": TOKENS},
}


@pytest.fixture
async def pair() -> AsyncIterator[Setup]:
    """Two decode workers of `a`, whose tokens come one by one."""
    async with running(NEVER, decoders=("a",), replicas=2) as setup:
        step_by_step(*setup.cluster.decode["a"])
        yield setup


def step_by_step(*workers: Worker, **plan: Any) -> None:
    for worker in workers:
        worker.plan = Plan(step=asyncio.Semaphore(0), **plan)


def let(worker: Worker, tokens: int) -> None:
    assert worker.plan.step is not None
    for _ in range(tokens):
        worker.plan.step.release()


def body_of(route: str, **more: Any) -> Json:
    return {"model": "a", **ROUTES.get(route, {}), **LENGTHS[route], "stream": True, **more}


async def taken_by(gateway: Setup, requests: int = 1) -> tuple[Worker, Worker]:
    """The worker that got the requests, and the other one."""
    workers = gateway.cluster.decode["a"]
    while sum(len(worker.requests) for worker in workers) < requests:
        async with gateway.http.get(gateway.url + "/workers"):
            pass
    first, second = sorted(workers, key=lambda worker: not worker.requests)
    return first, second


async def read(response: aiohttp.ClientResponse, events: int) -> str:
    return "".join([(await response.content.readuntil(b"\n\n")).decode() for _ in range(events)])


def plain(text: str) -> list[Any]:
    """The events of a stream without what no two have in common."""
    events = [event.split("data: ", 1)[1] for event in text.split("\n\n") if event]
    return [_plain(json.loads(event)) if event != "[DONE]" else event for event in events]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        volatile = ("id", "created", "created_at", "item_id", "completed_at")
        return {name: _plain(one) for name, one in value.items() if name not in volatile}
    return value


async def undisturbed(gateway: Setup, body: Json, route: str) -> list[Any]:
    async with running(NEVER, decoders=("a",)) as alone:
        alone.decode().plan = Plan(deltas=gateway.cluster.decode["a"][0].plan.deltas)
        async with alone.http.post(alone.url + route, json=body) as response:
            return plain(await response.text())


async def broken_off(
    gateway: Setup, body: Json, route: str, *, samples: int = 1, other: Json | None = None
) -> tuple[str, Worker, Worker]:
    """A stream whose worker dies after HAD tokens of each sample; with who died, who went on."""
    async with gateway.http.post(gateway.url + route, json=body) as response:
        first, second = await taken_by(gateway, samples)
        second.plan = Plan(deltas=first.plan.deltas, **(other or {}))
        let(first, HAD * samples)
        text = ""
        while text.count("\n\n") < HAD * samples:
            text += await read(response, 1)
        await first.die()
        text += await response.text()
    return text, first, second


@pytest.mark.parametrize("route", LENGTHS)
async def test_the_stream_is_the_same(pair: Setup, route: str) -> None:
    body = body_of(route)
    text, first, second = await broken_off(pair, body, route)
    assert plain(text) == await undisturbed(pair, body, route)
    assert ":ids" not in text
    (one,), (again,) = first.requests, second.requests
    own = again["sampling_params"] if route == "/generate" else again
    had = own["custom_params"][PARAM]
    assert had == list(range(100, 100 + len(had)))
    assert HAD - 1 <= len(had) <= HAD
    assert PARAM not in str(one)
    assert PARAM not in str(pair.prefill.requests)
    assert again["bootstrap_room"] != one["bootstrap_room"]
    assert pair.pending() == 0


@pytest.mark.parametrize("route", [*ROUTES])
async def test_ids_of_the_first_worker_remain(pair: Setup, route: str) -> None:
    text, first, _ = await broken_off(pair, body_of(route), route)
    events = [json.loads(one[6:]) for one in text.split("\n\n") if one[6:] not in ("", "[DONE]")]
    ids = {event["meta_info"]["id"] if route == "/generate" else event["id"] for event in events}
    assert ids == {first.requests[0]["rid"]}


@pytest.mark.parametrize("route", [*ROUTES])
async def test_tokens_that_the_client_has_are_not_chosen_again(pair: Setup, route: str) -> None:
    """The other worker would have said something else; it goes on from what was said."""
    text, _, second = await broken_off(pair, body_of(route), route, other={"choose_from": 200})
    assert second.plan.choose_from == 200
    assert "a-x-0 " in text
    assert f"a-x-{100 + TOKENS - 1} " in text
    assert "a-x-100 " not in text


@pytest.mark.parametrize("route", [*ROUTES])
async def test_tokens_that_come_together_are_cut(pair: Setup, route: str) -> None:
    body = body_of(route)
    text, _, _ = await broken_off(pair, body, route, other={"together": 4})
    words = "".join(f"a-x-{number} " for number in range(TOKENS))
    events = plain(text)
    if route == "/generate":
        assert events[-2]["text"] == words
    else:
        choices = [one["choices"][0] for one in events if one != "[DONE]" and one["choices"]]
        said = [one["text"] if "text" in one else one["delta"].get("content") for one in choices]
        assert "".join(filter(None, said)) == words
    assert events[-1] == "[DONE]"


@pytest.mark.parametrize("route", [*ROUTES])
async def test_each_of_several_samples_goes_on(pair: Setup, route: str) -> None:
    more: Json = {"n": 2, "seed": 5}
    if route == "/generate":
        more = {"sampling_params": {"max_new_tokens": TOKENS, "n": 2, "sampling_seed": 5}}
    body = body_of(route, **more)
    text, _, second = await broken_off(pair, body, route, samples=2)
    assert len(second.requests) == 2

    def by_sample(events: list[Any]) -> list[list[str]]:
        return [
            [json.dumps(event) for event in events if f'"index": {number}' in json.dumps(event)]
            for number in range(2)
        ]

    events, want = plain(text), await undisturbed(pair, body, route)
    assert by_sample(events) == by_sample(want)
    assert events[-2:] == want[-2:] or route == "/generate"


@pytest.mark.parametrize("had", range(1, len(SPEECH)))
async def test_thoughts_and_calls_go_on(pair: Setup, had: int) -> None:
    step_by_step(*pair.cluster.decode["a"], deltas=SPEECH)
    route = "/v1/chat/completions"
    body = body_of(route)
    async with pair.http.post(pair.url + route, json=body) as response:
        first, second = await taken_by(pair)
        second.plan = Plan(deltas=SPEECH)
        let(first, had)
        text = await read(response, 1 + had)
        await first.die()
        text += await response.text()
    assert plain(text) == await undisturbed(pair, body, route)


async def test_it_is_counted_and_told(pair: Setup, caplog: pytest.LogCaptureFixture) -> None:
    _, first, _ = await broken_off(pair, body_of("/v1/completions"), "/v1/completions")
    async with pair.http.get(pair.url + "/metrics") as response:
        metrics = await response.text()
    assert 'ps_sglang_gateway_continued_streams_total{decoder="a"} 1.0' in metrics
    assert 'ps_sglang_gateway_retries_total{reason="lost"} 1.0' in metrics
    assert any(
        f"'{first.name}' is unreachable" in one.message and "goes on on another" in one.message
        for one in caplog.records
    )


async def test_a_silent_worker_is_left_too() -> None:
    async with running(QUICK, decoders=("a",), replicas=2) as gateway:
        step_by_step(*gateway.cluster.decode["a"])
        body = body_of("/v1/completions")
        async with gateway.http.post(gateway.url + "/v1/completions", json=body) as response:
            first, second = await taken_by(gateway)
            second.plan = Plan()
            let(first, HAD)
            text = await read(response, HAD)
            first.silent = True
            text += await response.text()
        assert plain(text) == await undisturbed(gateway, body, "/v1/completions")
        await first.saw_hang_up_of_connection()


async def error_of(gateway: Setup, route: str, other: Json | None = None) -> Json:
    """The error in the last event of a stream that is broken off."""
    text, _, _ = await broken_off(gateway, body_of(route), route, other=other)
    error: Json = plain(text)[-1]
    return error


@pytest.mark.parametrize("route", [*ROUTES, "/v1/messages"])
async def test_without_another_worker_the_stream_ends_in_an_error(route: str) -> None:
    async with running(NEVER, decoders=("a",)) as gateway:
        step_by_step(gateway.decode())
        async with gateway.http.post(gateway.url + route, json=body_of(route)) as response:
            let(gateway.decode(), HAD)
            await read(response, HAD)
            await gateway.decode().die()
            last = plain(await response.text())[-1]
        assert "decode worker 'a-0' is unreachable" in last["error"]["message"]
        if route == "/v1/messages":
            assert last["type"] == "error"
        else:
            assert last["error"]["code"] == "worker_unreachable"
        assert gateway.pending() == 0


async def test_a_worker_with_other_weights_does_not_go_on(pair: Setup) -> None:
    """As while one worker after the other is swapped."""
    states = pair.cluster.decode["a"]
    assert states[1].facts is not None
    states[1].facts["weights"] = "w1:new"
    async with running(ProbeTiming(every=1000.0, engine_every=1000.0)) as _:
        pass
    error = await error_of(pair, "/v1/completions")
    assert error["error"]["code"] == "worker_unreachable"


async def test_a_worker_that_tells_no_ids_cannot_be_continued(pair: Setup) -> None:
    step_by_step(*pair.cluster.decode["a"], tells_ids=False)
    error = await error_of(pair, "/v1/completions")
    assert error["error"]["code"] == "worker_unreachable"


async def test_another_answer_is_not_passed_off_as_the_rest(pair: Setup) -> None:
    other = {"choose_from": 200, "obeys_ids": False}
    error = await error_of(pair, "/v1/completions", other)
    assert error["error"]["code"] == "stream_lost"
    assert pair.pending() == 0


async def test_clients_cannot_choose_tokens(pair: Setup) -> None:
    custom = {"custom_params": {PARAM: [1]}}
    for route in ("/v1/completions", "/v1/chat/completions"):
        assert (await pair.post(route, body_of(route, **custom)))[0] == 400
    body = body_of("/generate", sampling_params=custom)
    assert (await pair.post("/generate", body))[0] == 400


async def test_a_session_that_is_ended_does_not_go_on(pair: Setup) -> None:
    route, named = "/v1/completions", {"x-session-id": "s"}
    async with pair.http.post(pair.url + route, json=body_of(route), headers=named) as response:
        first, second = await taken_by(pair)
        let(first, HAD)
        await read(response, HAD)
        async with pair.http.delete(pair.url + "/sessions/s") as ended:
            assert ended.status == 200
        await first.die()
        last = plain(await response.text())[-1]
    assert last["error"]["code"] == "session_ended"
    assert not second.requests
