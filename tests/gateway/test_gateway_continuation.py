"""Streams whose decode worker is lost: another one goes on as if nothing had happened."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
import pytest

from ps_sglang.gateway.state import GATEWAY
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


@dataclass
class Begun:
    """A stream that has begun on `first`; what comes to `second` anew is not held up there."""

    response: aiohttp.ClientResponse
    first: Worker
    second: Worker
    text: str = ""

    async def end(self) -> list[Any]:
        """All of its events."""
        self.text += await self.response.text()
        return plain(self.text)

    async def break_off(self) -> list[Any]:
        """All of its events, with `first` dying now."""
        await self.first.die()
        return await self.end()


@asynccontextmanager
async def begun(
    gateway: Setup,
    route: str,
    body: Json,
    *,
    had: int = HAD,
    samples: int = 1,
    headers: dict[str, str] | None = None,
    **other: Any,
) -> AsyncIterator[Begun]:
    """A stream of which the client has `had` tokens. `other` is what the second worker's plan has.

    Of several samples one may be on the second worker.
    """
    workers = gateway.cluster.decode["a"]
    post = gateway.http.post(gateway.url + route, json=body, headers=headers)
    answer = asyncio.create_task(post.__aenter__())
    while sum(len(worker.requests) for worker in workers) < samples:
        async with gateway.http.get(gateway.url + "/workers"):
            pass
    first, second = sorted(workers, key=lambda worker: not worker.requests)
    let(second, TOKENS)
    second.plan = Plan(deltas=first.plan.deltas, **other)
    let(first, had)
    async with await answer as response:
        text = ""
        while text.count("\n\n") < had:
            text += (await response.content.readuntil(b"\n\n")).decode()
        yield Begun(response, first, second, text)


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


@pytest.mark.parametrize("route", LENGTHS)
async def test_the_stream_is_the_same(pair: Setup, route: str) -> None:
    body = body_of(route)
    async with begun(pair, route, body) as stream:
        assert await stream.break_off() == await undisturbed(pair, body, route)
    assert ":ids" not in stream.text
    (one,), (again,) = stream.first.requests, stream.second.requests
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
    async with begun(pair, route, body_of(route)) as stream:
        await stream.break_off()
    lines = [one[6:] for one in stream.text.split("\n\n")]
    events = [json.loads(one) for one in lines if one not in ("", "[DONE]")]
    ids = {event["meta_info"]["id"] if route == "/generate" else event["id"] for event in events}
    assert ids == {stream.first.requests[0]["rid"]}


@pytest.mark.parametrize("route", [*ROUTES])
async def test_tokens_that_the_client_has_are_not_chosen_again(pair: Setup, route: str) -> None:
    """The other worker would have said something else; it goes on from what was said."""
    async with begun(pair, route, body_of(route), choose_from=200) as stream:
        await stream.break_off()
    assert "a-x-0 " in stream.text
    assert f"a-x-{100 + TOKENS - 1} " in stream.text
    assert "a-x-100 " not in stream.text


@pytest.mark.parametrize("route", [*ROUTES])
async def test_tokens_that_come_together_are_cut(pair: Setup, route: str) -> None:
    async with begun(pair, route, body_of(route), together=4) as stream:
        events = await stream.break_off()
    words = "".join(f"a-x-{number} " for number in range(TOKENS))
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
    async with begun(pair, route, body, samples=2) as stream:
        events = await stream.break_off()
    assert len(stream.second.requests) == 2

    def by_sample(events: list[Any]) -> list[list[str]]:
        return [
            [json.dumps(event) for event in events if f'"index": {number}' in json.dumps(event)]
            for number in range(2)
        ]

    want = await undisturbed(pair, body, route)
    assert by_sample(events) == by_sample(want)
    assert events[-2:] == want[-2:] or route == "/generate"


@pytest.mark.parametrize("had", range(1, len(SPEECH)))
async def test_thoughts_and_calls_go_on(pair: Setup, had: int) -> None:
    step_by_step(*pair.cluster.decode["a"], deltas=SPEECH)
    route = "/v1/chat/completions"
    body = body_of(route)
    async with begun(pair, route, body, had=had) as stream:
        assert await stream.break_off() == await undisturbed(pair, body, route)


async def test_it_is_counted_and_told(pair: Setup, caplog: pytest.LogCaptureFixture) -> None:
    async with begun(pair, "/v1/completions", body_of("/v1/completions")) as stream:
        await stream.break_off()
    async with pair.http.get(pair.url + "/metrics") as response:
        metrics = await response.text()
    assert 'ps_sglang_gateway_continued_streams_total{decoder="a"} 1.0' in metrics
    assert 'ps_sglang_gateway_retries_total{reason="lost"} 1.0' in metrics
    (told,) = [one.message for one in caplog.records if "continues on another" in one.message]
    assert f"'{stream.first.name}' is unreachable" in told


async def test_a_silent_worker_is_left_too() -> None:
    async with running(QUICK, decoders=("a",), replicas=2) as gateway:
        step_by_step(*gateway.cluster.decode["a"])
        body = body_of("/v1/completions")
        async with begun(gateway, "/v1/completions", body) as stream:
            stream.first.silent = True
            assert await stream.end() == await undisturbed(gateway, body, "/v1/completions")
            await stream.first.saw_hang_up_of_connection()


async def error_of(gateway: Setup, **other: Any) -> Json:
    """The error in the last event of a stream that is broken off."""
    async with begun(gateway, "/v1/completions", body_of("/v1/completions"), **other) as stream:
        error: Json = (await stream.break_off())[-1]["error"]
    return error


@pytest.mark.parametrize("route", [*ROUTES, "/v1/messages"])
async def test_without_another_worker_the_stream_ends_in_an_error(pair: Setup, route: str) -> None:
    await pair.cluster.decode["a"][1].stop()
    async with pair.http.delete(pair.url + "/workers/a-1") as response:
        assert response.status == 200
    async with begun(pair, route, body_of(route)) as stream:
        last = (await stream.break_off())[-1]
    assert "decode worker 'a-0' is unreachable" in last["error"]["message"]
    if route == "/v1/messages":
        assert last["type"] == "error"
    else:
        assert last["error"]["code"] == "worker_unreachable"
    assert pair.pending() == 0


async def test_a_worker_with_other_weights_does_not_go_on(pair: Setup) -> None:
    """As while one worker after the other is swapped."""
    worker_state = pair.app[GATEWAY].pool.decode("a")[1]
    assert worker_state.facts is not None
    worker_state.facts = msgspec.structs.replace(worker_state.facts, weights="w1:new")
    assert (await error_of(pair))["code"] == "worker_unreachable"


async def test_a_worker_that_tells_no_ids_cannot_be_continued(pair: Setup) -> None:
    step_by_step(*pair.cluster.decode["a"], tells_ids=False)
    assert (await error_of(pair))["code"] == "worker_unreachable"


async def test_another_answer_is_not_passed_off_as_the_rest(pair: Setup) -> None:
    error = await error_of(pair, choose_from=200, obeys_ids=False)
    assert error["code"] == "stream_lost"


async def test_clients_cannot_choose_tokens(pair: Setup) -> None:
    custom = {"custom_params": {PARAM: [1]}}
    for route in ("/v1/completions", "/v1/chat/completions"):
        assert (await pair.post(route, body_of(route, **custom)))[0] == 400
    body = body_of("/generate", sampling_params=custom)
    assert (await pair.post("/generate", body))[0] == 400


async def test_a_session_that_is_ended_does_not_go_on(pair: Setup) -> None:
    body, named = body_of("/v1/completions"), {"x-session-id": "s"}
    async with begun(pair, "/v1/completions", body, headers=named) as stream:
        async with pair.http.delete(pair.url + "/sessions/s") as ended:
            assert ended.status == 200
        assert (await stream.break_off())[-1]["error"]["code"] == "session_ended"
    assert not stream.second.requests
