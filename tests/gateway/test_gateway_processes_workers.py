"""The workers of several gateway processes: they join one of them, and all have the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ps_sglang.events.control import EventStreamError
from ps_sglang.gateway.errors import WorkerFailed, WorkerUnreachable
from ps_sglang.gateway.peers import following
from ps_sglang.gateway.peers.messages import AllWorkers, WorkerIs
from ps_sglang.gateway.routing.worker_state import BreakerState
from ps_sglang.gateway.workers.breaker import FAILURES
from tests.gateway.gateway_setup import QUICK
from tests.gateway.processes_setup import Several, several
from tests.gateway.test_gateway_processes import body, loads, states, until_busy


@pytest.fixture
async def two() -> AsyncIterator[Several]:
    """Two processes before two prefill workers and two decode workers of `a`."""
    async with several(timing=QUICK, prefill=2, decoders=("a",), replicas=2) as made:
        yield made


async def call(two: Several, process: int, method: str, path: str, **options: Any) -> Any:
    async with two[process].http.request(method, two[process].url + path, **options) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("asked", [0, 1])
async def test_workers_drain_and_leave_for_all(two: Several, asked: int) -> None:
    drained, kept = (one.name for one in two.cluster.decode["a"])
    assert (await call(two, asked, "POST", f"/workers/{drained}/drain"))[0] == 200
    await two.agree()
    assert states(two, 0) == states(two, 1)
    assert states(two, 1)[drained] == "draining"
    for process in (0, 1):
        assert (await two[process].post("/generate", body()))[0] == 200
    assert [len(one.requests) for one in two.cluster.decode["a"]] == [0, 2]
    assert (await call(two, asked, "DELETE", f"/workers/{drained}"))[0] == 200
    await two.agree()
    assert drained not in states(two, 1)
    assert kept in states(two, 1)


async def test_a_worker_leaves_with_its_last_request_at_any_process(two: Several) -> None:
    """Also one that was sent just before its process heard that the worker is leaving."""
    gate = asyncio.Event()
    for worker in two.cluster.decode["a"]:
        worker.plan.gate = gate
    waiting = asyncio.create_task(two[1].post("/generate", body()))
    while True:
        await asyncio.sleep(0)
        if two[1].pending():  # the owner has not heard of it
            break
    busy = next(one.name for one in two.gateway(1).pool.decode() if one.load.requests)
    leaving = asyncio.create_task(call(two, 0, "DELETE", f"/workers/{busy}"))
    await two.agree()
    await two.agree()
    assert busy in states(two, 0), "its request at the other process has not ended"
    gate.set()
    assert (await waiting)[0] == 200
    assert (await leaving)[0] == 200


async def test_requests_are_taken_from_a_worker_at_all_processes(two: Several) -> None:
    hanging = two.cluster.decode["a"][0]
    for worker in two.cluster.decode["a"]:
        worker.plan.hang = worker is hanging
    other = two.cluster.decode["a"][1]
    await call(two, 0, "POST", f"/workers/{other.name}/drain")
    await two.agree()
    waiting = asyncio.create_task(two[1].post("/generate", body()))
    await until_busy(two, 1)
    await call(two, 0, "POST", f"/workers/{other.name}/resume")
    await two.agree()
    assert (await call(two, 0, "DELETE", f"/workers/{hanging.name}?now=1"))[0] == 200
    assert (await waiting)[0] == 200
    assert len(other.requests) == 1


async def test_a_worker_that_one_process_cannot_reach_is_broken_for_all(two: Several) -> None:
    broken = two.cluster.decode["a"][0]
    broken.plan.die = True
    health = two.gateway(0).health
    while not health.transitions[broken.name, type(two.gateway(0).pool.decode()[0].breaker).OPEN]:
        await two[1].post("/generate", body())
        await two.agree()
    assert states(two, 0).keys() == states(two, 1).keys()


async def test_how_requests_go_anywhere_counts_for_the_worker() -> None:
    async with several(prefill=2, decoders=("a",)) as two:
        follower, health = two.gateway(1).follower, two.gateway(0).health
        assert follower is not None
        name = two.cluster.prefill[0].name
        there, here = two.gateway(1).pool.get(name), two.gateway(0).pool.get(name)
        assert there is not None
        assert here is not None
        for _ in range(FAILURES - 1):
            follower.failed(there, WorkerFailed(there.worker, "it did not do"))
        follower.succeeded(there)
        await two.agree()
        health.failed(here, WorkerFailed(here.worker, "it did not do"))
        assert here.state == "good", "the success between counts"
        follower.failed(there, WorkerUnreachable(there.worker, "gone"))
        assert there.breaker is BreakerState.OPEN, "at once, before the owner says it"
        await two.agree()
        assert here.breaker is BreakerState.OPEN


async def test_a_restarted_workers_cache_is_forgotten_by_all(two: Several) -> None:
    name = two.cluster.prefill[0].name
    restarted = two.gateway(0).pool.get(name)
    assert restarted is not None
    restarted.incarnation = "0" * 16
    two.gateway(0).owner.look()
    await two.agree()
    cache = two.gateway(1).cache_index._workers[name]
    cache.check_incarnation("0" * 16)
    with pytest.raises(EventStreamError):
        cache.check_incarnation(two.cluster.prefill[0].incarnation)


async def test_leases_are_renewed_by_whichever_is_asked() -> None:
    async with several(timing=QUICK, changes={"prefill": (), "decode": ()}) as two:
        leases = {}
        for worker in (two.cluster.prefill[0], two.cluster.decode["a"][0]):
            status, answer = await call(
                two, 1, "POST", "/workers", json={"url": worker.url, "lease": True}
            )
            assert status == 201
            leases[answer["name"]] = answer["lease"]["id"]
        await two.agree()
        assert states(two, 1).keys() == leases.keys()
        for name, lease in leases.items():
            renewed = await call(two, 1, "POST", f"/workers/{name}/renew", json={"lease": lease})
            assert renewed[0] == 200
        assert (await two[1].post("/generate", body()))[0] == 200


async def test_a_process_that_dies_takes_its_load_along(two: Several) -> None:
    for worker in two.cluster.decode["a"]:
        worker.plan.hang = True
    waiting = asyncio.create_task(two[1].post("/generate", body("word " * 50)))
    await until_busy(two, 1)
    assert any(one != (0, 0, 0) for one in loads(two, 0).values())
    http = two[1].http
    await two.stop(1)
    await asyncio.gather(waiting, return_exceptions=True)
    while any(one != (0, 0, 0) for one in loads(two, 0).values()):
        await two.agree()
    for worker in two.cluster.decode["a"]:
        worker.plan.hang = False
    await two.start(1, http)
    await two.agree()
    assert states(two, 1) == states(two, 0)
    assert (await two[1].post("/generate", body()))[0] == 200


async def test_without_the_owner_the_others_serve_on(
    two: Several, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "LEASE_SECONDS", 0.05)
    http = two[0].http
    await two.stop(0)
    assert (await two[1].post("/generate", body()))[0] == 200
    status, answer = await call(two, 1, "GET", "/workers")
    assert (status, answer["error"]["code"]) == (503, "no_worker")
    before = two.gateway(1).pool.get(two.cluster.prefill[0].name)
    await two.start(0, http)
    await two.agree()
    assert states(two, 1) == states(two, 0)
    assert two.gateway(1).pool.get(two.cluster.prefill[0].name) is before, "it is the same"
    assert (await call(two, 1, "GET", "/workers"))[0] == 200


async def test_responses_are_the_owners(two: Several) -> None:
    status, answer = await two[1].post("/v1/responses", {"model": "a", "input": "x"})
    assert status == 200
    for process in (0, 1):
        found = await call(two, process, "GET", f"/v1/responses/{answer['id']}")
        assert found == (200, answer)
    sent = {"model": "a", "input": "y", "previous_response_id": answer["id"], "stream": True}
    async with two[1].http.post(two[1].url + "/v1/responses", json=sent) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        told = await response.text()
    assert told.rstrip().rsplit("event: ")[-1].startswith("response.incomplete"), told
    status, answer = await two[1].post("/v1/responses", {"model": "none", "input": "x"})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("asked", [0, 1])
async def test_metrics_are_those_of_all(two: Several, asked: int) -> None:
    for process in (0, 1, 1):
        assert (await two[process].post("/generate", body()))[0] == 200
    await two[1].post("/v1/responses", {"model": "a", "input": "x"})
    async with two[asked].http.get(two[asked].url + "/metrics") as response:
        families = text_string_to_metric_families(await response.text())
        samples = [one for family in families for one in family.samples]
    answered = {
        (one.labels["route"], one.labels["process"]): one.value
        for one in samples
        if one.name == "ps_sglang_gateway_requests_total"
    }
    assert answered == {
        ("/generate", "0"): 1,
        ("/generate", "1"): 2,
        ("/v1/responses", "0"): 1,
    }, "what is passed on counts where it is served"


async def test_only_the_owner_tells_of_workers(two: Several) -> None:
    """One that follows would tell what it has heard, perhaps long ago."""
    for process, tells in ((0, True), (1, False)):
        greetings = two.gateway(process).peers.greetings
        said = {type(message) for greet in greetings for message in greet(1 - process)}
        assert said & {WorkerIs, AllWorkers} == ({WorkerIs, AllWorkers} if tells else set())
