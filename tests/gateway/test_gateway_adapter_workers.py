"""Adapter workers that come back, and that join: each serves what it is known to have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ps_sglang.gateway.config import (
    Adapter,
    ConfigError,
    DecodeWorker,
    GatewayConfig,
    PrefillWorker,
)
from ps_sglang.gateway.state import GATEWAY
from tests.gateway.gateway_setup import QUICK, Setup, running, serving
from tests.gateway.test_gateway_decoders import adapters, ask, call, listed, lora, refused
from tests.support.standin_engine import Cluster, Worker

ADAPTERS = {"math": "/math", "code": "/code"}


@pytest.fixture
async def quick() -> AsyncIterator[Setup]:
    """An adapter worker with `math` and `code`, whose restart is noticed at once."""
    async with running(QUICK, decoders=(), adapters=ADAPTERS) as setup:
        yield setup


async def worker_entry(gateway: Setup, name: str = "lora-0") -> dict[str, Any]:
    _, answer = await call(gateway, "GET", "/workers")
    return next(one for one in answer["workers"] if one["name"] == name)


async def is_back(gateway: Setup, number: int = 0) -> dict[str, Any]:
    """Wait until the worker's process is the one that is known, and asked."""
    worker = lora(gateway, number)
    state = gateway.app[GATEWAY].pool.get(worker.name)
    assert state is not None
    while True:
        entry = await worker_entry(gateway, worker.name)
        if state.incarnation == worker.incarnation and entry["state"] in ("good", "trial"):
            return entry


# Coming back.


async def test_a_worker_comes_back_with_what_it_had(quick: Setup) -> None:
    await call(quick, "PUT", "/decoders/math", {"path": "/v2"})
    await call(quick, "POST", "/decoders", {"name": "new", "path": "/new"})
    await call(quick, "DELETE", "/decoders/code")
    before = adapters(quick).here
    asked = len(adapters(quick).asked)
    await lora(quick).restart()
    await is_back(quick)
    assert adapters(quick).here == before == {"math@2": "/v2", "new@1": "/new"}
    assert set(adapters(quick).asked[asked:]) == {
        "load math@2 /v2", "load new@1 /new", "unload math@1", "unload code@1",
    }  # fmt: skip
    assert await ask(quick, "math") == (200, "math@2")
    assert await ask(quick, "new") == (200, "new@1")


async def test_no_request_comes_before_its_adapter(quick: Setup) -> None:
    await call(quick, "PUT", "/decoders/math", {"path": "/v2"})
    gate = adapters(quick).gate = asyncio.Semaphore(0)
    await lora(quick).restart()
    async with lora(quick).arrived:
        await lora(quick).arrived.wait_for(lambda: adapters(quick).asked[-1] == "load math@2 /v2")
    before = len(lora(quick).requests)
    status, message = await refused(
        quick, "POST", "/v1/completions", {"model": "math", "prompt": "x"}
    )
    assert (status, "lora-0" in message) == (503, True)
    assert len(lora(quick).requests) == before
    gate.release()
    await is_back(quick)
    assert await ask(quick, "math") == (200, "math@2")


async def test_other_weights_under_the_same_name_are_not_served(quick: Setup) -> None:
    adapters(quick).weights["/math"] = "w1:changed"
    await lora(quick).restart()
    problem = (await is_back(quick))["problem"]
    assert "decoder 'math': it has other weights, w1:changed instead of w1:/math" in problem
    (worker,) = (await listed(quick))["math"]["workers"]
    assert "other weights" in worker["problem"]
    status, message = await refused(
        quick, "POST", "/v1/completions", {"model": "math", "prompt": "x"}
    )
    assert (status, "lora-0 does not serve it (it has other weights" in message) == (503, True)
    assert await ask(quick, "code") == (200, "code@1")
    assert await ask(quick, "base") == (200, "base")
    assert (await call(quick, "GET", "/health"))[0] == 503
    assert (await call(quick, "GET", "/models/math/get_model_info"))[0] == 503
    assert (await call(quick, "PUT", "/decoders/math", {"path": "/v2"}))[0] == 200
    assert await ask(quick, "math") == (200, "math@2")
    assert (await worker_entry(quick))["problem"] is None


async def test_an_adapter_that_cannot_be_loaded_again(quick: Setup) -> None:
    await call(quick, "PUT", "/decoders/math", {"path": "/v2"})
    adapters(quick).refuse["/v2"] = "/v2: no such folder"
    await lora(quick).restart()
    assert (
        "decoder 'math': decode worker 'lora-0': /v2: no such folder"
        in (await is_back(quick))["problem"]
    )
    assert await ask(quick, "code") == (200, "code@1")


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_worker_without_one_of_its_adapters_is_given_it(restarts: bool) -> None:
    async with Cluster.running(decoders=(), adapters=ADAPTERS) as cluster:
        (worker,) = cluster.lora
        assert worker.adapters is not None
        if not restarts:
            worker.adapters.here.pop("code@1")
        async with serving(cluster, QUICK) as gateway:
            await is_back(gateway)
            if restarts:
                worker.adapters.environment.pop("code@1")
                await worker.restart()
                await is_back(gateway)
            assert worker.adapters.asked == ["load code@1 /code"]
            assert await ask(gateway, "code") == (200, "code@1")


async def test_a_worker_that_takes_no_adapters_any_more_is_refused(quick: Setup) -> None:
    worker = lora(quick)
    known, worker.adapters = worker.adapters, None
    await worker.restart()
    while (await worker_entry(quick))["state"] != "refused":
        pass
    assert "it takes no adapters" in (await worker_entry(quick))["problem"]
    worker.adapters = known


async def test_a_restart_while_a_decoder_is_replaced() -> None:
    """The worker that restarts gets the new version from whoever is last."""
    async with running(QUICK, decoders=(), adapters={"math": "/math"}, replicas=2) as gateway:
        adapters(gateway, 1).gate = asyncio.Semaphore(0)
        told = len(lora(gateway, 0).told)
        replacing = asyncio.create_task(call(gateway, "PUT", "/decoders/math", {"path": "/v2"}))
        async with lora(gateway, 1).arrived:
            await lora(gateway, 1).arrived.wait_for(lambda: adapters(gateway, 1).asked)
        async with lora(gateway, 0).arrived:  # it has told the digest, too
            await lora(gateway, 0).arrived.wait_for(lambda: len(lora(gateway, 0).told) > told)
        told = len(lora(gateway, 0).told)
        await lora(gateway, 0).restart()
        async with lora(gateway, 0).arrived:
            await lora(gateway, 0).arrived.wait_for(lambda: len(lora(gateway, 0).told) > told)
        for _ in range(20):  # time in which a worker that waits for nothing would be back
            assert (await worker_entry(gateway, "lora-0"))["state"] == "starting"
        gate = adapters(gateway, 1).gate
        assert gate is not None
        gate.release()
        assert (await replacing)[0] == 200
        await is_back(gateway, 0)
        for number in (0, 1):
            assert adapters(gateway, number).here == {"math@2": "/v2"}
        for _ in range(4):
            assert await ask(gateway, "math") == (200, "math@2")


# Joining.


async def join(gateway: Setup, environment: dict[str, str], **options: Any) -> tuple[Worker, Any]:
    worker = await gateway.cluster.start("more", "base", adapters=environment, **options)
    body = {"url": worker.url, "name": "more"}
    return worker, await call(gateway, "POST", "/workers", body)


async def test_an_adapter_worker_joins_with_what_it_has(quick: Setup) -> None:
    worker, (status, answer) = await join(quick, {"math@7": "/math", "new@2": "/new"})
    assert (status, answer["decoders"]) == (201, ["base", "math", "new"])
    assert await ask(quick, "new") == (200, "new@2")
    seen: set[str] = set()
    while len(seen) < 2:
        seen.add((await ask(quick, "math"))[1])
    assert seen == {"math@1", "math@7"}
    assert (await call(quick, "PUT", "/decoders/math", {"path": "/v2"}))[0] == 200
    assert adapters(quick).here["math@8"] == "/v2"
    assert worker.adapters is not None
    assert worker.adapters.here == {"math@8": "/v2", "new@2": "/new"}


async def test_a_joined_worker_comes_back(quick: Setup) -> None:
    worker, _ = await join(quick, {"new@1": "/new", "other@1": "/other"})
    assert worker.adapters is not None
    worker.adapters.environment.pop("other@1")
    await worker.restart()
    asked = worker.adapters.asked
    async with worker.arrived:
        await worker.arrived.wait_for(lambda: "load other@1 /other" in asked)
    while (await worker_entry(quick, "more"))["state"] not in ("good", "trial"):
        pass
    assert await ask(quick, "new") == (200, "new@1")
    assert await ask(quick, "other") == (200, "other@1")


async def test_another_adapter_of_the_same_name_does_not_join(quick: Setup) -> None:
    _, (status, answer) = await join(quick, {"math@1": "/other"})
    assert status == 409
    assert (
        "weights of decoder math: cluster w1:/math, worker w1:/other" in answer["error"]["message"]
    )


async def test_one_name_is_a_whole_model_or_an_adapter() -> None:
    async with running(decoders=("a",), adapters={"math": "/math"}) as gateway:
        _, (status, answer) = await join(gateway, {"a@1": "/a"})
        assert (status, "cluster a whole model" in answer["error"]["message"]) == (409, True)
        worker = await gateway.cluster.start("whole", "math")
        status, message = await refused(gateway, "POST", "/workers", {"url": worker.url})
        assert (status, "cluster an adapter, worker a whole model" in message) == (409, True)


async def test_names_that_only_sglang_gave(quick: Setup) -> None:
    _, (status, answer) = await join(quick, {"math": "/math"})
    assert (status, "'math': its name is not like" in answer["error"]["message"]) == (409, True)


async def test_an_adapter_worker_of_another_base(quick: Setup) -> None:
    worker = await quick.cluster.start("more", "base", adapters={})
    assert worker.facts is not None
    worker.facts["weights"] = "w1:other"
    status, message = await refused(quick, "POST", "/workers", {"url": worker.url})
    assert (status, "weights of the base" in message) == (409, True)


async def test_decoders_leave_with_their_last_worker(quick: Setup) -> None:
    assert (await call(quick, "DELETE", "/workers/lora-0"))[0] == 200
    assert await listed(quick) == {}
    assert await ask(quick, "math") == (404, "")


# What a configuration says.


def config(*decode: DecodeWorker) -> GatewayConfig:
    return GatewayConfig("127.0.0.1", 0, "base", 100, 100, (), decode, is_aggregated=True)


@pytest.mark.parametrize(
    ("decode", "said"),
    [
        ((DecodeWorker("d", "u", "a"),), "its own `aggregated` is False"),
        (
            (DecodeWorker("d", "u", "base", adapters=(Adapter("base", "/x"),), aggregated=True),),
            "'base' is a whole model and an adapter",
        ),
        (
            (DecodeWorker("d", "u", "base", adapters=(Adapter("x:y", "/x"),), aggregated=True),),
            "'x:y' has a ':'",
        ),
        (
            (DecodeWorker("d", "u", "base", adapters=(Adapter("x", "/x"),) * 2, aggregated=True),),
            "'x' is listed twice",
        ),
    ],
)
def test_a_wrong_configuration(decode: tuple[DecodeWorker, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(*decode)


def test_a_configuration_is_read_as_it_was_written() -> None:
    worker = DecodeWorker("d", "u", "base", adapters=(Adapter("math", "/x", 3),), aggregated=True)
    written = config(worker)
    assert GatewayConfig.from_json(written.to_json()) == written
    assert written.decoders == ("base", "math")


def test_no_prefill_worker_stands_beside_an_aggregated_one() -> None:
    prefill = (PrefillWorker("p", "u", "h", 1),)
    decode = (DecodeWorker("d", "u", "base", adapters=(), aggregated=True),)
    with pytest.raises(ConfigError, match="need none beside them"):
        GatewayConfig("127.0.0.1", 0, "base", 100, 100, prefill, decode, is_aggregated=True)
