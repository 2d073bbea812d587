"""Requests on which workers die: at most two are lost, and nobody else's request is refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ps_sglang.gateway.bodies.checks import Limits
from ps_sglang.gateway.bodies.requests import parse
from ps_sglang.gateway.bodies.samples import Endpoint, Served
from ps_sglang.gateway.dispatch.poison import MOST, REFUSED_SECONDS, Suspect, Suspects
from ps_sglang.gateway.errors import PoisonRequest
from ps_sglang.gateway.index.prompts import Prompts
from ps_sglang.gateway.routing.pool import WorkerPool
from ps_sglang.gateway.workers.probe import ProbeTiming
from tests.gateway.gateway_setup import running
from tests.gateway.hand_clock import Clock
from tests.support.standin_engine import Cluster, Plan, Worker

RARELY = ProbeTiming(every=1000.0, engine_every=1000.0)
ROUTE = "/v1/completions"
BAD = {"model": "a", "prompt": "poison here"}


def bite(*workers: Worker) -> None:
    for worker in workers:
        worker.plan = Plan(dies_of="poison")


def had(workers: list[Worker]) -> list[int]:
    """How many copies of the poisonous request each worker took."""
    return [sum("poison" in str(one) for one in worker.requests) for worker in workers]


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("more", [{}, {"n": 3}, {"prompt": ["poison here", "an innocent"]}])
async def test_at_most_two_workers_are_lost(
    caplog: pytest.LogCaptureFixture, role: str, stream: bool, more: dict[str, Any]
) -> None:
    async with running(RARELY, prefill=3, decoders=("a",), replicas=3) as gateway:
        workers = gateway.cluster.prefill if role == "prefill" else gateway.cluster.decode["a"]
        bite(*workers)
        for attempt in range(3):
            body = {**BAD, **more, "stream": stream, "seed": attempt, "user": str(attempt)}
            async with gateway.http.post(gateway.url + ROUTE, json=body) as response:
                # Of a batch that is streamed another answer may have begun.
                begun = response.content_type == "text/event-stream"
                assert response.status == (200 if begun else 422)
                last = (await response.text()).strip().split("\n\n")[-1]
            assert not begun or (stream and "prompt" in more)
            error = json.loads(last.removeprefix("data: "))["error"]
            assert (error["code"], error["type"]) == ("poison_request", "invalid_request_error")
        if "n" not in more:
            assert sorted(had(workers)) == [0, 1, 1]
        assert sum(bool(count) for count in had(workers)) == 2
        assert gateway.pending() == 0
        assert any("taken for the cause" in one.message for one in caplog.records)
        # Others go on: they are no copies of it.
        assert (await gateway.post(ROUTE, {"model": "a", "prompt": "fine"}))[0] == 200


async def test_the_decoder_does_not_matter() -> None:
    async with running(RARELY, prefill=3, decoders=("a", "b")) as gateway:
        bite(*gateway.cluster.prefill)
        for name in ("a", "b"):
            assert (await gateway.post(ROUTE, {**BAD, "model": name}))[0] == 422
        assert sum(had(gateway.cluster.prefill)) == 2


async def test_a_worker_that_refuses_connections_had_no_request() -> None:
    async with running(RARELY, prefill=4, decoders=("a",)) as gateway:
        for worker in gateway.cluster.prefill[:3]:
            await worker.stop()
        assert (await gateway.post(ROUTE, BAD))[0] == 200


async def test_a_stream_that_had_begun_counts() -> None:
    """It continues on another worker, and that one dies, too."""
    async with running(RARELY, decoders=("a",), replicas=3) as gateway:
        workers = gateway.cluster.decode["a"]
        for worker in workers:
            worker.plan = Plan(die_after=1)
        codes = []
        for _ in range(3):
            body = {**BAD, "stream": True}
            async with gateway.http.post(gateway.url + ROUTE, json=body) as response:
                last = (await response.text()).strip().split("\n\n")[-1]
                codes.append(json.loads(last.removeprefix("data: "))["error"]["code"])
        assert codes == ["poison_request"] * 3
        assert sorted(len(worker.requests) for worker in workers) == [0, 1, 1]


async def test_a_silent_worker_is_no_proof_but_is_left_once_only() -> None:
    quick = ProbeTiming(
        every=0.02, deadline=0.3, silence=0.3, engine_every=1000.0, engine_deadline=0.3
    )
    async with running(quick, prefill=3, decoders=("a",)) as gateway:
        for worker in gateway.cluster.prefill:
            worker.silent = True
        status, answer = await gateway.post(ROUTE, BAD)
        assert (status, answer["error"]["code"]) == (503, "worker_unreachable")
        assert sorted(had(gateway.cluster.prefill)) == [0, 1, 1]


async def test_those_that_were_only_there_are_answered() -> None:
    async with running(RARELY, prefill=3, decoders=("a",)) as gateway:
        workers = gateway.cluster.prefill
        bitten, gate = asyncio.Event(), asyncio.Event()
        for worker in workers:
            worker.plan = Plan(dies_of="poison", bite=bitten, gate=gate)
        innocent = [{"model": "a", "prompt": f"innocent {number}"} for number in range(12)]
        requests = [asyncio.create_task(gateway.post(ROUTE, one)) for one in [BAD, *innocent]]
        while sum(len(worker.requests) for worker in workers) < len(requests):
            await gateway.http.get(gateway.url + "/workers")
        (home,) = [one for one in workers if had([one]) == [1]]
        assert len(home.requests) > 1
        bitten.set()
        await home.dead.wait()
        gate.set()
        (refused, _), *answers = await asyncio.gather(*requests)
        assert refused == 422
        assert [status for status, _ in answers] == [200] * len(innocent)
        assert sum(worker.dead.is_set() for worker in workers) == 2
        assert gateway.pending() == 0


def suspect(prompt: str, **more: Any) -> Suspect:
    body = {"prompt": prompt, "model": "a", **more}
    served = Served(("a", "b"), Limits(vocabulary=500, context_length=100), Prompts(), "")
    return Suspect(parse(Endpoint.COMPLETIONS, json.dumps(body).encode(), None, {}, served))


async def pool() -> WorkerPool:
    async with Cluster.running(prefill=2, decoders=("a",)) as cluster:
        return WorkerPool(cluster.config().workers)


async def test_what_a_digest_tells_apart() -> None:
    same: list[dict[str, Any]] = [
        {"seed": 3},
        {"model": "b"},
        {"stream": True},
        {"rid": "x"},
        {"n": 2},
        {"user": "u"},
    ]
    assert {suspect("x", **one).digest for one in same} == {suspect("x").digest}
    others = [suspect("y"), suspect("x", max_tokens=3), suspect("x", logprobs=1)]
    assert suspect("x").digest not in {one.digest for one in others}


async def test_two_deaths_are_proof_for_a_while(clock: Clock) -> None:
    suspects, (first, second) = Suspects(clock), (await pool()).prefill
    assert not suspects.died(suspect("x"), first)
    assert not suspects.died(suspect("x"), first), "a second sample on the same worker"
    suspects.refuse_poison(suspect("x"))
    assert suspects.died(suspect("x"), second)
    suspects.refuse_poison(suspect("y"))
    with pytest.raises(PoisonRequest, match=r"'prefill-0' when it died.*'prefill-1' when that"):
        suspects.refuse_poison(suspect("x"))
    clock.now += REFUSED_SECONDS + 1
    suspects.refuse_poison(suspect("x"))


async def test_one_worker_may_die_twice(clock: Clock) -> None:
    """It was restarted, and met the same request."""
    suspects, (worker, _) = Suspects(clock), (await pool()).prefill
    assert not suspects.died(suspect("x"), worker)
    clock.now += 60
    assert suspects.died(suspect("x"), worker)


async def test_an_answer_clears(clock: Clock) -> None:
    suspects, (first, second) = Suspects(clock), (await pool()).prefill
    suspects.died(suspect("x"), first)
    suspects.answered(suspect("x"))
    assert not suspects.died(suspect("x"), second)


async def test_the_oldest_are_forgotten(clock: Clock) -> None:
    suspects, (first, second) = Suspects(clock), (await pool()).prefill
    for number in range(MOST + 1):
        suspects.died(suspect(f"x {number}"), first)
    assert suspects.died(suspect("x 1"), second)
    assert not suspects.died(suspect("x 0"), second)


async def test_suspects_are_alone_on_a_worker(clock: Clock) -> None:
    suspects, worker_states = Suspects(clock), await pool()
    (first, second), (decode,) = worker_states.prefill, worker_states.decode("a")
    for prompt in "xyz":
        suspects.died(suspect(prompt), first)
    assert await suspects.turn(suspect("unknown"), (second, decode)) is None
    turn = await suspects.turn(suspect("x"), (second, decode))
    other = await suspects.turn(suspect("y"), (first, decode))
    assert turn is not None
    assert other is not None
    waiting = asyncio.create_task(suspects.turn(suspect("z"), (second, decode)))
    await asyncio.sleep(0)
    assert not waiting.done()
    turn.prefilled()
    last = await waiting
    turn.release()  # it is the other's by now
    after = asyncio.create_task(suspects.turn(suspect("x"), (second, decode)))
    await asyncio.sleep(0)
    assert not after.done()
    assert last is not None
    last.release()
    assert await after is not None
