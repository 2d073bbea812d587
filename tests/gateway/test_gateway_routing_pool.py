"""The pool of workers, without HTTP."""

from __future__ import annotations

import asyncio

import pytest

from ps_sglang.gateway.config import DecodeWorker, PrefillWorker, Worker
from ps_sglang.gateway.errors import NoWorker
from ps_sglang.gateway.routing.decoder_state import DecoderState
from ps_sglang.gateway.routing.pool import WorkerPool
from ps_sglang.gateway.routing.worker_state import BreakerState, WorkerState


def prefill(name: str) -> PrefillWorker:
    return PrefillWorker(name, f"http://{name}:1", name, 9000)


def decode(name: str, decoder: str = "a") -> DecodeWorker:
    return DecodeWorker(name, f"http://{name}:1", decoder)


def pool(*workers: Worker) -> WorkerPool:
    return WorkerPool(workers or (prefill("p0"), prefill("p1"), decode("a0"), decode("b0", "b")))


def names(worker_states: object) -> list[str]:
    assert isinstance(worker_states, list | tuple)
    return [worker_state.name for worker_state in worker_states]


def test_workers_by_role_and_name() -> None:
    workers = pool()
    assert names(list(workers)) == ["p0", "p1", "a0", "b0"]
    assert names(workers.prefill) == ["p0", "p1"]
    assert names(workers.decode("b")) == ["b0"]
    assert names(workers.decode()) == ["a0", "b0"]
    assert workers.decode("c") == ()
    assert list(workers.decoders) == ["a", "b"]
    assert workers.get("x") is None
    found = workers.get("p1")
    assert found is workers.prefill[1]
    assert found.host == "p1"


def test_workers_join_and_leave() -> None:
    workers = pool(prefill("p0"), decode("a0"))
    seen: list[tuple[str, str]] = []
    workers.joined.append(lambda worker_state: seen.append(("joined", worker_state.name)))
    workers.left.append(lambda worker_state: seen.append(("left", worker_state.name)))
    workers.add(decode("a1"))
    workers.add(decode("c0", "c"))
    assert list(workers.decoders) == ["a", "c"]
    old = workers.remove("a0")
    assert names(workers.decode("a")) == ["a1"]
    workers.remove("c0")
    assert list(workers.decoders) == ["a"]
    assert workers.add(decode("a0")) is not old, "nothing of the old one may count for the new"
    workers.remove("p0")
    assert workers.prefill == ()
    assert seen == [
        ("joined", "a1"),
        ("joined", "c0"),
        ("left", "a0"),
        ("left", "c0"),
        ("joined", "a0"),
        ("left", "p0"),
    ]


def test_a_name_is_taken_once() -> None:
    workers = pool(prefill("p0"))
    with pytest.raises(ValueError, match="there is a worker 'p0' already"):
        workers.add(decode("p0"))
    assert len(workers) == 1
    with pytest.raises(KeyError):
        workers.remove("p1")


def test_candidates_are_those_that_take_requests() -> None:
    workers = pool(*(prefill(f"p{number}") for number in range(4)))
    good, draining, broken, trial = workers.prefill
    draining.draining = True
    broken.breaker = BreakerState.OPEN
    trial.breaker = BreakerState.HALF_OPEN
    assert workers.prefill_candidates() == [good, trial]
    trial.begin()
    assert workers.prefill_candidates() == [good], "a trial is one request at a time"
    trial.end()
    assert workers.prefill_candidates({"p0"}) == [trial]


def test_broken_workers_are_tried_when_there_is_no_other_but_draining_ones_never() -> None:
    workers = pool()
    first, second = workers.prefill
    first.breaker = BreakerState.OPEN
    second.draining = True
    assert workers.prefill_candidates() == [first]
    workers.decode("a")[0].breaker = BreakerState.OPEN
    assert names(workers.decode_candidates(workers.served("a"))) == ["a0"]


def test_no_candidate_says_why() -> None:
    workers = pool()
    first, second = workers.prefill
    second.draining = True
    with pytest.raises(NoWorker) as failure:
        workers.prefill_candidates({first.name})
    assert failure.value.message == (
        "No prefill worker is available: p0 is not answering, p1 is draining."
    )
    assert failure.value.status == 503
    with pytest.raises(NoWorker, match=r"^No decode worker of 'x' is available: there is none\.$"):
        workers.decode_candidates(DecoderState("x"))


def test_states_by_name() -> None:
    worker_state = WorkerState(prefill("p0"))
    assert worker_state.state == "good"
    worker_state.breaker = BreakerState.OPEN
    assert worker_state.state == "broken"
    worker_state.draining = True
    assert worker_state.state == "draining"


async def test_wait_idle_ends_with_the_last_request() -> None:
    worker_state = WorkerState(decode("a0"))
    await worker_state.wait_idle()
    worker_state.begin()
    worker_state.begin()
    waiting = asyncio.create_task(worker_state.wait_idle())
    given_up = asyncio.create_task(worker_state.wait_idle())
    await asyncio.sleep(0)
    given_up.cancel()
    worker_state.end()
    await asyncio.sleep(0)
    assert not waiting.done()
    worker_state.end()
    await waiting
    assert (worker_state.load.requests, worker_state.load.chosen) == (0, 2)
