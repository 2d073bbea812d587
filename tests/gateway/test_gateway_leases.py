"""A gateway that starts empty: workers join with leases, renew them, and are forgotten."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from ps_sglang.gateway.config import Adapter, DecodeWorker, PrefillWorker
from ps_sglang.gateway.errors import GatewayError, Loss
from ps_sglang.gateway.routing.pool import WorkerPool
from ps_sglang.gateway.routing.worker_state import AnyWorkerState
from ps_sglang.gateway.state import GATEWAY
from ps_sglang.gateway.workers.leases import SECONDS, Leases
from tests.gateway.gateway_setup import Setup, serving
from tests.gateway.hand_clock import Clock
from tests.support.standin_engine import BASE, Cluster, Worker

ROUTE = "/v1/completions"
BODY = {"prompt": "one two", "model": "a"}
PREFILL = PrefillWorker("p", "http://h:1", "h", 2)
DECODE = DecodeWorker("d", "http://h:3", "a")


class Pool:
    """A pool with leases, on a clock that the test moves."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.pool = WorkerPool((PREFILL, DECODE))
        self.taken: list[tuple[str, Loss]] = []
        self.leases = Leases(self.pool, self._take, self.clock)

    def _take(self, worker_state: AnyWorkerState, reason: str, loss: Loss) -> int:
        self.taken.append((worker_state.name, loss))
        return 0

    def state(self, name: str) -> AnyWorkerState:
        worker_state = self.pool.get(name)
        assert worker_state is not None
        return worker_state

    def passes(self, seconds: float) -> None:
        """Time, in which the gateway does not stand still."""
        for _ in range(int(seconds)):
            self.clock.now += 1
            self.leases.expire()

    def names(self) -> set[str]:
        return {one.name for one in self.pool}


@pytest.fixture
def pool() -> Pool:
    return Pool()


def test_who_does_not_renew_leaves(pool: Pool) -> None:
    lease = pool.leases.grant(pool.state("d"))
    pool.passes(SECONDS - 1)
    assert pool.names() == {"p", "d"}
    pool.leases.renew("d", lease.id)
    pool.passes(SECONDS - 1)
    assert (pool.names(), pool.taken) == ({"p", "d"}, [])
    pool.passes(1)
    assert (pool.names(), pool.taken) == ({"p"}, [("d", Loss.TAKEN)])


def test_who_has_no_lease_stays(pool: Pool) -> None:
    pool.passes(10 * SECONDS)
    assert pool.names() == {"p", "d"}
    assert pool.leases.seconds_left(pool.state("d")) is None


def test_time_in_which_the_gateway_stood_still_does_not_count(pool: Pool) -> None:
    pool.leases.grant(pool.state("d"))
    pool.clock.now += 1000
    pool.leases.expire()
    assert pool.names() == {"p", "d"}
    pool.passes(SECONDS)
    assert pool.names() == {"p"}


@pytest.mark.parametrize(("removed", "code"), [(False, "lease_unknown"), (True, "worker_removed")])
def test_why_a_lease_cannot_be_renewed(pool: Pool, removed: bool, code: str) -> None:
    lease = pool.leases.grant(pool.state("d"))
    if removed:
        pool.pool.remove("d")
    else:
        pool.passes(SECONDS)
    with pytest.raises(GatewayError) as caught:
        pool.leases.renew("d", lease.id)
    assert caught.value.code == code


def test_a_lease_is_its_holders(pool: Pool) -> None:
    """Also where another worker has got the name since."""
    old = pool.leases.grant(pool.state("d"))
    pool.passes(SECONDS)
    new = pool.leases.grant(pool.pool.add(DECODE))
    for id in (old.id, "", "ü"):
        with pytest.raises(GatewayError, match="has no such lease"):
            pool.leases.renew("d", id)
    pool.leases.renew("d", new.id)


@asynccontextmanager
async def empty(cluster: Cluster, **fields: Any) -> AsyncIterator[Setup]:
    """A gateway that knows no worker of a running cluster."""
    config = replace(cluster.config(), prefill=(), decode=(), **fields)
    async with serving(cluster, config=config) as setup:
        yield setup


@pytest.fixture
async def alone() -> AsyncIterator[Setup]:
    """An empty gateway; a prefill worker and one of decoder `a` run, and have not joined."""
    async with Cluster.running(decoders=("a",)) as cluster, empty(cluster) as setup:
        yield setup


async def joins(setup: Setup, worker: Worker, **fields: Any) -> str:
    """A worker joins under its own name; returns its lease's id."""
    body = {"url": worker.url, "name": worker.name, "lease": True, **fields}
    status, answer = await setup.post("/workers", body)
    assert (status, answer["lease"]["seconds"]) == (201, SECONDS), answer
    id: str = answer["lease"]["id"]
    return id


async def get(setup: Setup, path: str) -> tuple[int, Any]:
    async with setup.http.get(setup.url + path) as response:
        return response.status, await response.json()


async def let_expire(setup: Setup) -> None:
    """As if nobody had renewed for so long."""
    leases = setup.app[GATEWAY].leases
    for lease in leases._leases.values():
        lease.ends = 0.0
    leases.expire()


async def test_nothing_is_served_before_a_worker_joins(alone: Setup) -> None:
    assert await get(alone, "/ready") == (
        503,
        {"status": "unavailable", "prefill": [], "decoders": []},
    )
    assert (await get(alone, "/health"))[0] == 503
    assert (await get(alone, "/v1/models"))[1]["data"] == []
    async with alone.http.post(alone.url + ROUTE, json=BODY) as response:
        error = (await response.json())["error"]
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
    assert (error["code"], error["type"]) == ("no_worker", "server_error")
    assert "No worker of 'a' has joined" in error["message"]


async def test_a_gateway_is_filled_by_its_workers(alone: Setup) -> None:
    prefill, decode = alone.prefill, alone.decode()
    await joins(alone, decode)
    status, answer = await alone.post(ROUTE, BODY)
    assert (status, answer["error"]["message"]) == (
        503, "No prefill worker is available: there is none.",
    )  # fmt: skip
    await joins(alone, prefill)
    assert (await get(alone, "/ready"))[0] == 200
    assert (await alone.post(ROUTE, BODY))[0] == 200


@pytest.mark.parametrize(("awaits", "seconds"), [(True, 60.0), (True, -10.0), (False, 60.0)])
async def test_an_unknown_model_while_workers_may_be_about_to_join_again(
    awaits: bool, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ps_sglang.gateway.state.LEASE_SECONDS", seconds)
    async with (
        Cluster.running(decoders=("a",)) as cluster,
        empty(cluster, awaits_workers=awaits) as setup,
    ):
        await joins(setup, setup.decode())
        status, answer = await setup.post(ROUTE, {**BODY, "model": "b"})
        waits = awaits and seconds > 0
        want = (503, "no_worker") if waits else (404, "model_not_found")
        assert (status, answer["error"]["code"]) == want


async def test_a_model_that_the_cluster_is_starting_is_no_mistake() -> None:
    """Until it has been there; once its last worker has left, it is unknown as any other."""
    async with (
        Cluster.running(decoders=("a", "b")) as cluster,
        empty(cluster, starting=("a", "b")) as setup,
    ):

        async def ask(model: str) -> tuple[int, str | None]:
            status, answer = await setup.post(ROUTE, {**BODY, "model": model})
            return status, answer["error"]["code"] if status != 200 else None

        for worker in (setup.prefill, setup.decode("b")):
            await joins(setup, worker)
        assert await ask("a") == (503, "no_worker")
        assert await ask("c") == (404, "model_not_found")
        await joins(setup, setup.decode("a"))
        assert await ask("a") == (200, None)
        await let_expire(setup)
        await joins(setup, setup.decode("b"))
        assert await ask("a") == (404, "model_not_found")


async def test_a_renewal(alone: Setup) -> None:
    id = await joins(alone, alone.decode())
    status, answer = await alone.post("/workers/a-0/renew", {"lease": id})
    want = {"lease": {"id": id, "seconds": SECONDS}, "state": "good", "loading": False}
    assert (status, answer) == (200, want)
    assert 0 < (await get(alone, "/workers/a-0"))[1]["lease_seconds"] <= SECONDS
    for body in ({}, {"lease": 1}, {"lease": id, "more": 1}):
        assert (await alone.post("/workers/a-0/renew", body))[0] == 400


async def test_a_worker_that_was_forgotten_joins_again(alone: Setup) -> None:
    id = await joins(alone, alone.decode())
    await let_expire(alone)
    assert (await get(alone, "/workers"))[1]["workers"] == []
    status, answer = await alone.post("/workers/a-0/renew", {"lease": id})
    assert (status, answer["error"]["code"]) == (404, "lease_unknown")
    await joins(alone, alone.decode())
    assert (await get(alone, "/workers/a-0"))[1]["state"] == "good"


async def test_requests_of_a_worker_that_is_forgotten(alone: Setup) -> None:
    """They end as for a dead worker: here there is no other, and a stream has begun."""
    await joins(alone, alone.prefill)
    await joins(alone, alone.decode())
    alone.decode().plan.step = asyncio.Semaphore(1)
    async with alone.http.post(alone.url + ROUTE, json={**BODY, "stream": True}) as response:
        await response.content.readuntil(b"\n\n")
        await let_expire(alone)
        last = (await response.text()).strip().split("\n\n")[-1]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert "decode worker 'a-0' is unreachable: its lease expired" in error["message"]
    await alone.decode().saw_hang_up()


async def test_a_worker_that_was_removed_stays_away(alone: Setup) -> None:
    id = await joins(alone, alone.decode())
    async with alone.http.delete(alone.url + "/workers/a-0") as response:
        assert response.status == 200
    status, answer = await alone.post("/workers/a-0/renew", {"lease": id})
    assert (status, answer["error"]["code"]) == (410, "worker_removed")


async def test_the_last_prefill_worker_may_end_itself(alone: Setup) -> None:
    id = await joins(alone, alone.prefill)
    for query, status in (("", 409), ("?lease=other", 409), (f"?lease={id}", 200)):
        async with alone.http.delete(f"{alone.url}/workers/prefill-0{query}") as response:
            assert response.status == status


async def test_a_lease_that_expires_while_its_worker_leaves(alone: Setup) -> None:
    await joins(alone, alone.prefill)
    await joins(alone, alone.decode())
    alone.decode().plan.hang = True
    asking = asyncio.create_task(alone.post(ROUTE, BODY))
    await alone.decode().saw(1)
    leaving = asyncio.create_task(alone.http.delete(alone.url + "/workers/a-0"))
    while (await get(alone, "/workers/a-0"))[1]["state"] != "draining":
        pass
    await let_expire(alone)
    assert (await leaving).status == 200
    assert (await asking)[0] == 503


async def test_the_first_worker_must_be_of_the_base() -> None:
    async with Cluster.running(decoders=("a",)) as cluster:
        async with empty(cluster, fingerprint="ps1:other") as setup:
            body = {"url": setup.decode().url, "lease": True}
            status, answer = await setup.post("/workers", body)
            said = f"base fingerprint: cluster ps1:other, worker {BASE}"
            assert (status, said in answer["error"]["message"]) == (409, True)
        async with empty(cluster, fingerprint=BASE) as setup:
            await joins(setup, setup.decode())


async def test_adapters_come_with_their_worker() -> None:
    """What was added at run time is known again to a gateway that has restarted."""
    async with Cluster.running(decoders=(), adapters={"math": "/math"}) as cluster:
        (lora,) = cluster.lora
        assert lora.adapters is not None
        async with empty(cluster) as setup:
            await joins(setup, cluster.prefill[0])
            await joins(setup, lora)
            status, _ = await setup.post("/decoders", {"name": "code", "path": "/code"})
            assert status == 201
        async with empty(cluster) as setup:
            await joins(setup, cluster.prefill[0])
            await joins(setup, lora)
            listed = (await get(setup, "/decoders"))[1]["decoders"]
            paths = {one["name"]: one["path"] for one in listed}
            assert paths == {"base": None, "math": "/math", "code": "/code"}
            assert (await setup.post(ROUTE, {**BODY, "model": "code"}))[0] == 200
            worker_state = setup.app[GATEWAY].pool.get("lora-0")
            assert worker_state is not None
            assert isinstance(worker_state.worker, DecodeWorker)
            assert worker_state.worker.adapters == (
                Adapter("math", "/math"), Adapter("code", "/code"),
            )  # fmt: skip
        assert lora.adapters.at_unload == []


async def test_aggregated_workers_join_an_aggregated_cluster() -> None:
    async with (
        Cluster.running(
            prefill=0, decoders=(), adapters={"math": "/math"}, aggregated=True
        ) as cluster,
        empty(cluster) as setup,
    ):
        assert (await get(setup, "/health"))[0] == 503
        await joins(setup, cluster.lora[0])
        assert (await setup.post(ROUTE, {**BODY, "model": "math"}))[0] == 200
