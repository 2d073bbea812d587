"""Workers that stop answering: found, left alone, tried again; requests stuck on them go on."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ps_sglang.gateway.routing.worker_state import AnyWorkerState, BreakerState
from ps_sglang.gateway.state import GATEWAY
from ps_sglang.gateway.workers.breaker import FAILURES
from ps_sglang.gateway.workers.probe import ProbeTiming
from tests.gateway.gateway_setup import Setup, running, serving
from tests.support.standin_engine import Cluster, Plan, Worker

ROUTE = "/v1/completions"
BODY = {"prompt": "one two", "model": "a"}
# Much is asked, so that no test waits; answers may take long, so that none is missed by chance.
SERVERS = ProbeTiming(
    every=0.02, deadline=0.5, silence=0.5, engine_every=1000.0, engine_deadline=0.5
)
ENGINES = ProbeTiming(
    every=0.02,
    deadline=1000.0,
    silence=1000.0,
    engine_every=0.02,
    engine_deadline=0.5,
    engine_silence=0.5,
)


@pytest.fixture
async def quick() -> AsyncIterator[Setup]:
    """One prefill worker, decoders `a` and `b`; servers are asked all the time."""
    async with running(SERVERS) as setup:
        yield setup


def worker_state(gateway: Setup, worker: Worker) -> AnyWorkerState:
    found = gateway.app[GATEWAY].pool.get(worker.name)
    assert found is not None
    return found


async def becomes(gateway: Setup, worker: Worker, health: BreakerState) -> None:
    """Ask until the gateway sees `worker` so; the test's own time limit ends a vain wait."""
    while await state(gateway, worker) != health.value:
        pass


async def state(gateway: Setup, worker: Worker) -> str:
    """The worker's state as /workers tells it."""
    listed = (await get(gateway, "/workers"))["workers"]
    return str(next(one["state"] for one in listed if one["name"] == worker.name))


async def get(gateway: Setup, path: str) -> Any:
    async with gateway.http.get(gateway.url + path) as response:
        return await response.text() if path == "/metrics" else await response.json()


timing_and_silence = pytest.mark.parametrize(
    ("timing", "silent"),
    [(SERVERS, "silent"), (ENGINES, "engine_silent")],
    ids=["server", "engine"],
)
REPLICATED: dict[str, Any] = {"prefill": 2, "decoders": ("a",), "replicas": 2}


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("stream", [False, True])
@timing_and_silence
async def test_requests_stuck_on_a_silent_worker_go_to_another(
    timing: ProbeTiming, silent: str, stream: bool, role: str
) -> None:
    """It accepts them and never answers, as a stopped process does."""
    async with running(timing, **REPLICATED) as gateway:
        cluster = gateway.cluster
        first, second = cluster.prefill if role == "prefill" else cluster.decode["a"]
        setattr(first, silent, True)

        async def ask() -> tuple[int, str]:
            async with gateway.http.post(
                gateway.url + ROUTE, json={**BODY, "stream": stream}
            ) as response:
                return response.status, await response.text()

        answers = await asyncio.gather(*(ask() for _ in range(4)))
        assert all(status == 200 and "a-x-2" in text for status, text in answers)
        assert first.requests
        assert len(second.requests) == 4
        assert gateway.pending() == 0
        assert worker_state(gateway, first).breaker is BreakerState.OPEN


@pytest.mark.parametrize("role", ["prefill", "decode"])
@timing_and_silence
async def test_no_other_worker_is_a_clear_error(
    timing: ProbeTiming, silent: str, role: str
) -> None:
    async with running(timing) as gateway:
        worker = gateway.prefill if role == "prefill" else gateway.decode()
        setattr(worker, silent, True)
        status, answer = await gateway.post(ROUTE, BODY)
        assert (status, answer["error"]["code"]) == (503, "worker_unreachable")
        path = "/ready" if timing is SERVERS else "/health"
        assert answer["error"]["message"] == (
            f"{role} worker '{worker.name}' is unreachable: it did not answer {path} within 0.5 s"
        )
        assert gateway.pending() == 0


async def test_a_decode_worker_that_notices_first_is_not_to_blame() -> None:
    """It fails the handoff from a prefill worker that the gateway is still giving time."""
    patient = dataclasses.replace(SERVERS, silence=1000.0)
    async with running(patient, prefill=2, decoders=("a",)) as gateway:
        first, second = gateway.cluster.prefill
        first.silent = True
        lost = asyncio.Event()
        gateway.decode().plan = Plan(lost_prefill=lost)
        request = asyncio.create_task(gateway.post(ROUTE, BODY))
        await gateway.decode().saw(1)
        await becomes(gateway, first, BreakerState.OPEN)
        assert first.requests
        gateway.decode().plan = Plan()
        lost.set()
        assert (await request)[0] == 200
        assert len(second.requests) == 1
        assert worker_state(gateway, gateway.decode()).breaker is BreakerState.CLOSED


async def test_a_stream_that_has_begun_ends_with_an_error(quick: Setup) -> None:
    quick.decode().plan.step = asyncio.Semaphore(1)
    async with quick.http.post(quick.url + ROUTE, json={**BODY, "stream": True}) as response:
        assert response.status == 200
        await response.content.readuntil(b"\n\n")
        quick.decode().silent = True
        last = (await response.text()).strip().split("\n\n")[-1]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert "is unreachable: it did not answer /ready within 0.5 s" in error["message"]


async def test_a_stream_outlives_its_prefill_worker(quick: Setup) -> None:
    """After the handoff nothing of it is needed any more."""
    step = quick.decode().plan.step = asyncio.Semaphore(1)
    async with quick.http.post(quick.url + ROUTE, json={**BODY, "stream": True}) as response:
        await response.content.readuntil(b"\n\n")
        await worker_state(quick, quick.prefill).wait_idle()
        quick.prefill.silent = True
        await becomes(quick, quick.prefill, BreakerState.OPEN)
        for _ in range(2):
            step.release()
        assert (await response.text()).strip().endswith("data: [DONE]")


async def test_only_engines_at_work_are_asked() -> None:
    """Of an idle one the question would make a forward pass; of one that loads, an alarm."""
    async with running(ENGINES, decoders=("a", "b", "c")) as gateway:
        idle, loading, working = (gateway.decode(name) for name in "abc")
        requests = []
        for worker in (loading, working):
            worker.plan.step = asyncio.Semaphore(0)
            body = {**BODY, "model": worker.decoder}
            requests.append(asyncio.create_task(gateway.post(ROUTE, body)))
            await worker.saw(1)
        with gateway.app[GATEWAY].health.engine_busy(worker_state(gateway, loading)):
            for worker in (idle, loading, working):
                worker.engine_silent = True
            await becomes(gateway, working, BreakerState.OPEN)
            assert (
                worker_state(gateway, idle).breaker
                is worker_state(gateway, loading).breaker
                is BreakerState.CLOSED
            )
            assert loading.plan.step is not None
            for _ in range(3):
                loading.plan.step.release()
            assert [status for status, _ in await asyncio.gather(*requests)] == [200, 503]


async def test_an_engine_may_begin_to_load_while_it_is_asked() -> None:
    async with running(ENGINES) as gateway:
        worker = gateway.decode()
        worker.plan.step = asyncio.Semaphore(0)
        worker.engine_silent = True
        request = asyncio.create_task(gateway.post(ROUTE, BODY))
        await worker.health_asked.wait()
        with gateway.app[GATEWAY].health.engine_busy(worker_state(gateway, worker)):
            await worker.health_given_up.wait()
            assert await state(gateway, worker) == "good"
        request.cancel()


async def test_a_broken_worker_is_left_alone_and_tried_again() -> None:
    async with running(SERVERS, **REPLICATED) as gateway:
        first, second = gateway.cluster.decode["a"]
        first.ready = False
        await becomes(gateway, first, BreakerState.OPEN)
        for _ in range(4):
            assert (await gateway.post(ROUTE, BODY))[0] == 200
        assert (len(first.requests), len(second.requests)) == (0, 4)
        first.ready = True
        await becomes(gateway, first, BreakerState.CLOSED)
        while not first.requests:
            assert (await gateway.post(ROUTE, BODY))[0] == 200


async def test_a_worker_whose_engine_stays_silent_stays_broken(quick: Setup) -> None:
    """Its server answers; that is not enough for one that was broken."""
    worker = quick.decode()
    assert (await quick.post(ROUTE, BODY))[0] == 200
    worker.ready = False
    await becomes(quick, worker, BreakerState.OPEN)
    worker.engine_silent = True
    worker.ready = True
    reason = worker_state(quick, worker).problem
    while worker_state(quick, worker).problem == reason:
        assert await state(quick, worker) == "broken"
    assert worker_state(quick, worker).problem == "it did not answer /health within 0.5 s"
    assert quick.app[GATEWAY].health.transitions["a-0", BreakerState.OPEN] == 1


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_lost_connection_breaks_at_once(quick: Setup, role: str) -> None:
    worker = quick.prefill if role == "prefill" else quick.decode()
    await worker.stop()
    await becomes(quick, worker, BreakerState.OPEN)
    problem = worker_state(quick, worker).problem
    assert problem is not None
    assert "Connect call failed" in problem


async def test_a_worker_that_fails_where_another_does_not_breaks() -> None:
    """Its probes all succeed. Nothing is probed here, so that it stays broken."""
    rarely = ProbeTiming(every=1000.0, engine_every=1000.0)
    async with running(rarely, prefill=2, decoders=("a",)) as gateway:
        bad, good = gateway.cluster.prefill
        bad.plan = Plan(refuse=(500, {"message": "out of pages"}))
        # The first answer makes it known: before that a worker is only not there yet.
        assert (await gateway.post(ROUTE, {**BODY, "prompt": "zero"}))[0] == 200
        good.requests.clear()
        statuses = [(await gateway.post(ROUTE, BODY))[0] for _ in range(4 * FAILURES)]
        assert set(statuses) == {200}
        assert len(bad.requests) >= FAILURES
        assert worker_state(gateway, bad).breaker is BreakerState.OPEN
        assert len(good.requests) == 4 * FAILURES


async def test_what_every_worker_fails_at_breaks_none() -> None:
    """The request is why, as the second worker shows, or two requests that fail alike."""
    rarely = ProbeTiming(every=1000.0, engine_every=1000.0)
    problem = {"message": "Internal server error: 'tools'"}
    for both_legs in (False, True):
        async with running(rarely, prefill=2, decoders=("a",)) as gateway:
            for worker in gateway.cluster.prefill:
                worker.plan = Plan(refuse=(500, problem))
            if both_legs:
                gateway.decode().plan = Plan(refuse=(500, problem))
            answers = [
                await gateway.post(ROUTE, {**BODY, "prompt": f"prompt {number}"})
                for number in range(FAILURES + 1 if both_legs else 2)
            ]
            for status, answer in answers:
                assert (status, answer["error"]["message"]) == (500, problem["message"])
            assert all(one.breaker is BreakerState.CLOSED for one in gateway.app[GATEWAY].pool)
            # Where both requests say it, no other worker needs to be asked.
            asked = sum(len(worker.requests) for worker in gateway.cluster.prefill)
            assert asked <= len(answers) if both_legs else asked == 2 * len(answers)


async def test_a_requests_own_error_is_that_on_a_broken_worker_too() -> None:
    problem = {"message": "Internal server error: 'tools'"}
    async with running(SERVERS, decoders=("a",)) as gateway:
        gateway.prefill.ready = False
        await becomes(gateway, gateway.prefill, BreakerState.OPEN)
        for worker in gateway.cluster.workers:
            worker.plan = Plan(refuse=(500, problem))
        for number in range(4):
            status, answer = await gateway.post(ROUTE, {**BODY, "prompt": f"prompt {number}"})
            assert (status, answer["error"]["message"]) == (500, problem["message"])


@pytest.mark.parametrize("prefill_first", [False, True])
@pytest.mark.parametrize(
    ("prefill", "decode", "told"),
    [
        ((500, "same"), (500, "same"), (500, "same")),
        ((400, "too long"), (500, "handoff failed"), (400, "too long")),
        ((500, "no pages"), (400, "bad field"), (400, "bad field")),
        ((400, "too long"), (400, "bad field"), (400, "bad field")),
        (
            (500, "no pages"),
            (500, "handoff failed"),
            (502, "prefill worker 'prefill-0' failed: no pages"),
        ),
    ],
)
async def test_the_error_is_the_cause_whichever_request_fails_first(
    prefill: tuple[int, str], decode: tuple[int, str], told: tuple[int, str], prefill_first: bool
) -> None:
    rarely = ProbeTiming(every=1000.0, engine_every=1000.0)
    async with running(rarely, decoders=("a",)) as gateway:
        first, second = gateway.prefill, gateway.decode()
        if not prefill_first:
            first, second = second, first
        gates = asyncio.Event(), asyncio.Event()
        for worker, gate in zip((first, second), gates, strict=True):
            status, message = prefill if worker is gateway.prefill else decode
            worker.plan = Plan(gate=gate, refuse=(status, {"message": message}))
        request = asyncio.create_task(gateway.post(ROUTE, BODY))
        await first.saw(1)
        await second.saw(1)
        gates[0].set()
        while first.running:
            await get(gateway, "/workers")
        gates[1].set()
        status, answer = await request
        assert (status, answer["error"]["message"]) == told


async def test_a_clean_start_counts_no_break() -> None:
    """The gateway is up before its workers are, as the launcher starts them together."""
    async with Cluster.running() as cluster:
        worker = cluster.decode["a"][0]
        worker.ready = False
        async with serving(cluster, SERVERS) as gateway:
            assert await state(gateway, worker) == "starting"
            assert (await get(gateway, "/workers"))["workers"][1]["times_broken"] == 0
            worker.ready = True
            await becomes(gateway, worker, BreakerState.CLOSED)
            worker.ready = False
            await becomes(gateway, worker, BreakerState.OPEN)
            assert (await get(gateway, "/workers"))["workers"][1]["times_broken"] == 1


async def test_workers_that_join_are_watched_and_those_that_leave_are_not(quick: Setup) -> None:
    worker = await quick.cluster.start("c-0", "c")
    async with quick.http.post(
        quick.url + "/workers", json={"url": worker.url, "name": "c-0"}
    ) as response:
        assert response.status == 201
    joined = worker_state(quick, worker)
    worker.silent = True
    await becomes(quick, worker, BreakerState.OPEN)
    async with quick.http.delete(quick.url + "/workers/c-0") as response:
        assert response.status == 200
    quick.app[GATEWAY].health.succeeded(joined)
    assert joined.breaker is BreakerState.OPEN


async def test_states_are_shown(quick: Setup) -> None:
    assert (await quick.post(ROUTE, BODY))[0] == 200
    quick.decode().silent = True
    await becomes(quick, quick.decode(), BreakerState.OPEN)
    listed = (await get(quick, "/workers"))["workers"][1]
    assert (listed["state"], listed["times_broken"]) == ("broken", 1)
    assert listed["problem"] == "it did not answer /ready within 0.5 s"
    text = await get(quick, "/metrics")
    state = 'ps_sglang_gateway_worker_state{decoder="a",role="decode",state="%s",worker="a-0"} %d.0'
    assert state % ("broken", 1) in text
    assert state % ("good", 0) in text
    assert 'ps_sglang_gateway_breaker_transitions_total{state="broken",worker="a-0"} 1.0' in text
