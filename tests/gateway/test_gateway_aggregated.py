"""One-worker mode: each request goes to one worker only, which computes its prompt too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ps_sglang.events.messages import Span
from ps_sglang.gateway.state import GATEWAY
from ps_sglang.gateway.telemetry import trace
from tests.gateway.gateway_setup import QUICK, Setup, running
from tests.gateway.test_gateway_adapter_workers import is_back, worker_entry
from tests.gateway.test_gateway_decoders import adapters, ask, call, lora, refused
from tests.gateway.test_gateway_poison import RARELY
from tests.gateway.test_gateway_trace import metrics_of
from tests.support.standin_engine import CHAT, COMPLETIONS, GENERATE, Plan

ADAPTERS = {"math": "/math", "code": "/code"}
SHAPE: dict[str, Any] = {"prefill": 0, "decoders": (), "adapters": ADAPTERS, "aggregated": True}
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "math", "messages": [{"role": "user", "content": "one two"}]},
    COMPLETIONS: {"model": "math", "prompt": "one two"},
    GENERATE: {"model": "math", "text": "one two"},
}
route_and_stream = pytest.mark.parametrize(
    ("route", "stream"), [(route, stream) for route in BODIES for stream in (False, True)]
)


@pytest.fixture
async def gateway() -> AsyncIterator[Setup]:
    async with running(**SHAPE) as setup:
        yield setup


@pytest.fixture
async def replicas() -> AsyncIterator[Setup]:
    async with running(RARELY, **SHAPE, replicas=2) as setup:
        yield setup


async def text_of(gateway: Setup, route: str, stream: bool, **more: Any) -> tuple[int, str]:
    body = {**BODIES[route], "stream": stream, **more}
    async with gateway.http.post(gateway.url + route, json=body) as response:
        return response.status, await response.text()


# Serving.


@route_and_stream
async def test_one_request_to_one_worker(gateway: Setup, route: str, stream: bool) -> None:
    status, text = await text_of(gateway, route, stream)
    assert (status, "math@1-x-0" in text, "math@1-x-2" in text) == (200, True, True)
    (request,) = lora(gateway).requests
    assert request["lora_path"] == "math@1"
    assert not [name for name in request if name.startswith("bootstrap")]
    assert gateway.pending() == 0


async def test_several_samples(gateway: Setup) -> None:
    status, text = await text_of(gateway, COMPLETIONS, False, n=3, prompt=["a", "b"])
    assert (status, len(json.loads(text)["choices"])) == (200, 6)
    assert gateway.pending() == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_samples_of_one_prompt_go_together(gateway: Setup, stream: bool) -> None:
    """The worker computes a common prefix once."""
    step = lora(gateway).plan.step = asyncio.Semaphore(0)
    request = asyncio.create_task(text_of(gateway, COMPLETIONS, stream, n=2))
    await lora(gateway).saw(2)
    for _ in range(6):
        step.release()
    assert (await request)[0] == 200


async def test_it_is_ready_and_healthy_without_a_prefill_worker(gateway: Setup) -> None:
    for path in ("/ready", "/health", "/models/math/ready", "/models/math/health"):
        assert (await call(gateway, "GET", path))[0] == 200
    lora(gateway).ready = False
    assert (await call(gateway, "GET", "/health"))[0] == 503


async def test_why_a_request_goes_where_it_goes(replicas: Setup) -> None:
    state = replicas.app[GATEWAY].pool.get("lora-0")
    assert state is not None
    state.load.queued_tokens = 10
    _, answer = await call(replicas, "POST", "/debug/route", {"model": "math", "prompt": "x " * 40})
    decision = answer["decisions"][0]
    assert decision["chosen"] == {"prefill": None, "decode": "lora-1"}
    best, second = decision["candidates"]
    assert best["terms"]["new"] > 0
    assert best["terms"]["move"] == 0
    assert second["terms"]["queue"] == 5.0


async def test_what_a_worker_holds_draws_the_next_turn(replicas: Setup) -> None:
    long = " ".join(f"w{number}" for number in range(2000))
    for _ in range(6):
        await replicas.post(COMPLETIONS, {"model": "math", "prompt": long})
        await replicas.post(COMPLETIONS, {"model": "code", "prompt": long})
    assert sorted(len(worker.requests) for worker in replicas.cluster.lora) == [0, 12]


async def test_many_go_to_all(replicas: Setup) -> None:
    for worker in replicas.cluster.lora:
        worker.plan.step = asyncio.Semaphore(0)
    requests = [asyncio.create_task(ask(replicas, "math")) for _ in range(4)]
    for worker in replicas.cluster.lora:
        await worker.saw(2)
        assert worker.plan.step is not None
        for _ in range(6):
            worker.plan.step.release()
    assert {status for status, _ in await asyncio.gather(*requests)} == {200}


async def test_a_session_stays(replicas: Setup) -> None:
    for number in range(4):
        body = {"model": "math", "prompt": f"turn {number}", "session_id": "talk"}
        await replicas.post(COMPLETIONS, body)
    assert sorted(len(worker.requests) for worker in replicas.cluster.lora) == [0, 4]
    status, answer = await call(replicas, "DELETE", "/sessions/talk")
    assert (status, len(answer["workers"])) == (200, 1)


async def test_a_hint(gateway: Setup) -> None:
    body = {"model": "math", "prompt": "one two", "hints": {"next": "code"}}
    assert (await gateway.post(COMPLETIONS, body))[0] == 200
    await lora(gateway).saw(2)
    assert "lora_path" not in lora(gateway).requests[1]


# Failures.


@route_and_stream
async def test_hanging_up_aborts(gateway: Setup, route: str, stream: bool) -> None:
    lora(gateway).plan.hang = True
    request = asyncio.create_task(text_of(gateway, route, stream))
    await lora(gateway).saw(1)
    request.cancel()
    await lora(gateway).saw_hang_up()
    assert gateway.pending() == 0


@route_and_stream
async def test_a_lost_worker_is_replaced_by_another(
    replicas: Setup, route: str, stream: bool
) -> None:
    first, second = replicas.cluster.lora
    first.plan = Plan(die=True)
    second.plan = Plan(die=True)
    status, text = await text_of(replicas, route, stream)
    assert (status, "poison_request" in text) == (422, True)
    second.plan = Plan()
    status, text = await text_of(replicas, route, stream, seed=3, **_other(route))
    assert status == 200
    assert replicas.pending() == 0


def _other(route: str) -> dict[str, Any]:
    """Another prompt, and no field that the route does not know."""
    if route == CHAT:
        return {"messages": [{"role": "user", "content": "three"}]}
    return {"prompt": "three"} if route == COMPLETIONS else {"text": "three"}


@route_and_stream
async def test_an_engines_refusal_is_the_clients(gateway: Setup, route: str, stream: bool) -> None:
    lora(gateway).plan = Plan(refuse=(400, {"error": {"message": "no room"}}))
    status, text = await text_of(gateway, route, stream)
    assert (status, json.loads(text)["error"]["message"]) == (400, "no room")
    lora(gateway).plan = Plan(refuse=(500, {"error": {"message": "broken"}}))
    assert (await text_of(gateway, route, stream))[0] == 500
    assert gateway.pending() == 0


async def test_a_stream_that_breaks_off(gateway: Setup) -> None:
    lora(gateway).plan = Plan(die_after=2)
    status, text = await text_of(gateway, COMPLETIONS, True)
    assert (status, "decode worker 'lora-0' is unreachable" in text) == (200, True)
    assert gateway.pending() == 0


async def test_the_only_worker_is_down(gateway: Setup) -> None:
    await lora(gateway).stop()
    status, message = await refused(gateway, "POST", COMPLETIONS, BODIES[COMPLETIONS])
    assert (status, "'lora-0' is unreachable" in message) == (503, True)


# Decoders and workers at run time.


async def test_decoders_come_and_go(gateway: Setup) -> None:
    body = {"name": "new", "path": "/new"}
    assert (await call(gateway, "POST", "/decoders", body))[0] == 201
    assert await ask(gateway, "new") == (200, "new@1")
    assert (await call(gateway, "PUT", "/decoders/math", {"path": "/v2"}))[0] == 200
    assert await ask(gateway, "math") == (200, "math@2")
    assert (await call(gateway, "DELETE", "/decoders/code"))[0] == 200
    assert adapters(gateway).here == {"new@1": "/new", "math@2": "/v2"}


async def test_a_worker_comes_back() -> None:
    async with running(QUICK, **SHAPE) as gateway:
        await call(gateway, "PUT", "/decoders/math", {"path": "/v2"})
        await lora(gateway).restart()
        await is_back(gateway)
        assert await ask(gateway, "math") == (200, "math@2")


async def test_another_in_its_place_is_refused() -> None:
    async with running(QUICK, **SHAPE) as gateway:
        facts = lora(gateway).facts
        assert facts is not None
        facts["role"] = "decode"
        await lora(gateway).restart()
        while (entry := await worker_entry(gateway))["state"] != "refused":
            pass
        assert "workers are aggregated" in entry["problem"]


async def test_only_its_like_joins(gateway: Setup) -> None:
    like = await gateway.cluster.start("more", "base", adapters={}, aggregated=True)
    assert (await call(gateway, "POST", "/workers", {"url": like.url, "name": "more"}))[0] == 201
    for decoder in ("b", None):
        other = await gateway.cluster.start("other", decoder)
        status, message = await refused(gateway, "POST", "/workers", {"url": other.url})
        assert (status, "--one-worker" in message) == (409, True)
    plain = await gateway.cluster.start("plain", "base", aggregated=True)
    status, message = await refused(gateway, "POST", "/workers", {"url": plain.url})
    assert (status, "it takes no adapters" in message) == (409, True)


async def test_it_joins_only_its_like() -> None:
    async with running() as gateway:
        worker = await gateway.cluster.start("more", "base", adapters={}, aggregated=True)
        status, message = await refused(gateway, "POST", "/workers", {"url": worker.url})
        assert (status, "it is a plain server" in message) == (409, True)


# Where its time went.


async def test_a_timeline() -> None:
    async with running(**SHAPE, events=True) as gateway:
        while not gateway.app[GATEWAY].cache_index.is_live("lora-0"):
            await metrics_of(gateway)
        body = {**BODIES[COMPLETIONS]}
        asked = asyncio.create_task(gateway.post(COMPLETIONS, body, headers={trace.HEADER: "1"}))
        await lora(gateway).saw(1)
        publisher = lora(gateway).publisher
        assert publisher is not None
        rid = lora(gateway).requests[0]["rid"]
        publisher.record(
            Span(
                rid=rid, role="prefill", began=1000.0, queue=0.25, wait=0.5, prefill=2.0,
                computed=30, held=69,
            )
        )  # fmt: skip
        publisher.record(Span(rid=rid, role="decode", began=1002.75, decode=1.5))
        _, answer = await asked
        (timeline,) = answer["timeline"]
        seconds = timeline["seconds"]
        seconds.pop("total")
        assert seconds == {"queue": 0.25, "wait": 0.5, "prefill": 2.0, "decode": 1.5}
        assert timeline["tokens"] == {"computed": 30, "tree": 69}
        assert timeline["prefill_worker"] is None
        assert timeline["decode_worker"] == "lora-0"
        text = await metrics_of(gateway)
        for source, count in (("computed", 30.0), ("tree", 69.0)):
            labels = f'decoder="math",source="{source}"'
            assert f"ps_sglang_gateway_base_tokens_total{{{labels}}} {count}" in text
