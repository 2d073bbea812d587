"""/workers: who serves; joining, draining, leaving, and new weights while requests run."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ps_sglang.gateway.state import GATEWAY
from tests.gateway.gateway_setup import Setup, running, serving
from tests.support.standin_engine import COMMON, Cluster, Plan, Worker

ROUTE = "/v1/completions"
BODY = {"prompt": "one two", "model": "a"}


async def call(gateway: Setup, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    async with gateway.http.request(method, gateway.url + path, json=body) as response:
        return response.status, await response.json()


async def states(gateway: Setup) -> dict[str, str]:
    _, answer = await call(gateway, "GET", "/workers")
    return {worker["name"]: worker["state"] for worker in answer["workers"]}


async def refused(gateway: Setup, method: str, path: str, body: Any = None) -> tuple[int, str]:
    """Status and message of a call that must be refused, in OpenAI's format."""
    status, answer = await call(gateway, method, path, body)
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    return status, answer["error"]["message"]


async def answered_by(gateway: Setup, worker: Worker, count: int = 1) -> None:
    """Ask until `worker` was given `count` more requests."""
    before = len(worker.requests)
    while len(worker.requests) < before + count:
        assert (await gateway.post(ROUTE, BODY))[0] == 200


# Who serves.


async def test_the_list(gateway: Setup) -> None:
    status, answer = await call(gateway, "GET", "/workers")
    assert status == 200
    assert answer["workers"][1] == {
        "name": "a-0",
        "role": "decode",
        "decoder": "a",
        "decoders": ["a"],
        "url": gateway.decode().url,
        "state": "good",
        "problem": None,
        "times_broken": 0,
        "lease_seconds": None,
        "load": {"requests": 0, "queued_tokens": 0, "moving_tokens": 0},
        "cache": {
            "known_by": "estimate",
            "problem": "the gateway was given no tokenizer",
            "tokens": 0,
        },
    }
    assert [worker["role"] for worker in answer["workers"]] == ["prefill", "decode", "decode"]


# Joining.


async def test_a_decode_worker_joins_and_serves(gateway: Setup) -> None:
    worker = await gateway.cluster.start("c-0", "c")
    status, answer = await call(gateway, "POST", "/workers", {"url": worker.url + "/"})
    port = worker.url.rpartition(":")[2]
    assert (status, answer["name"]) == (201, f"decode-c-127.0.0.1:{port}")
    assert (await gateway.post(ROUTE, {**BODY, "model": "c"}))[0] == 200
    assert len(worker.requests) == 1
    _, models = await call(gateway, "GET", "/v1/models")
    assert [card["id"] for card in models["data"]] == ["a", "b", "c"]


async def test_a_prefill_worker_joins_and_serves(gateway: Setup) -> None:
    worker = await gateway.cluster.start("prefill-1", None)
    body = {"url": worker.url, "name": "more"}
    assert (await call(gateway, "POST", "/workers", body))[0] == 201
    gateway.prefill.plan = Plan(die=True)
    assert (await gateway.post(ROUTE, BODY))[0] == 200
    assert worker.requests[0]["bootstrap_host"] == "127.0.0.1"
    assert worker.requests[0]["bootstrap_port"] == 9000


@pytest.mark.parametrize(
    ("bound", "seen"),
    [
        ("tcp://*:5557", "tcp://127.0.0.1:5557"),
        ("tcp://0.0.0.0:5557", "tcp://127.0.0.1:5557"),
        ("tcp://10.0.0.2:5557", "tcp://10.0.0.2:5557"),
    ],
)
async def test_the_events_of_a_worker_that_joins(gateway: Setup, bound: str, seen: str) -> None:
    worker = await gateway.cluster.start("c-0", "c")
    assert worker.facts is not None
    worker.facts |= {"events": bound, "events_control": bound}
    body = {"url": worker.url, "name": "c-0"}
    assert (await call(gateway, "POST", "/workers", body))[0] == 201
    worker_state = gateway.app[GATEWAY].pool.get("c-0")
    assert worker_state is not None
    assert (worker_state.worker.events, worker_state.worker.events_control) == (seen, seen)


async def test_a_worker_without_our_events_joins_too(gateway: Setup) -> None:
    worker = await gateway.cluster.start("c-0", "c")
    body = {"url": worker.url, "name": "c-0"}
    status, answer = await call(gateway, "POST", "/workers", body)
    assert (status, answer["cache"]["known_by"]) == (201, "estimate")


async def test_another_name_for_clients(gateway: Setup) -> None:
    worker = await gateway.cluster.start("x", "x")
    body = {"url": worker.url, "name": "second", "decoder": "a"}
    assert (await call(gateway, "POST", "/workers", body))[1]["decoder"] == "a"
    await answered_by(gateway, worker)


async def test_a_misfit_is_refused_with_every_difference(gateway: Setup) -> None:
    worker = await gateway.cluster.start("c-0", "c")
    assert worker.facts is not None
    worker.facts |= {
        "common": {**COMMON, "layers": 4, "page_size": 16, "extra": "x"},
        "trained_on": "ps1:other",
        "capacity": 99,
    }
    status, message = await refused(gateway, "POST", "/workers", {"url": worker.url})
    assert status == 409
    for difference in (
        "layers: cluster 3, worker 4",
        "page_size: cluster 1, worker 16",
        "extra: cluster None, worker x",
        "trained on: cluster ps1:base, worker ps1:other",
        "takes requests of 100 tokens, the worker holds 99",
    ):
        assert difference in message
    assert len(await states(gateway)) == 3


@pytest.mark.parametrize("decoder", [None, "c"])
@pytest.mark.parametrize(
    ("backend", "sizes", "fits"),
    [
        ("zmq", (2, 1), False),
        ("nixl", (2, 3), False),
        ("zmq", (2, 2), True),
        ("nixl", (2, 4), True),
    ],
)
async def test_a_worker_whose_pages_are_divided_otherwise(
    backend: str, sizes: tuple[int, int], fits: bool, decoder: str | None
) -> None:
    async with Cluster.running() as cluster:
        common = {**COMMON, "disaggregation_transfer_backend": backend}
        for known in cluster.workers:
            assert known.facts is not None
            known.facts |= {"common": common, "tp_size": sizes[0]}
        async with serving(cluster) as gateway:
            worker = await cluster.start("new", decoder)
            assert worker.facts is not None
            worker.facts |= {"common": common, "tp_size": sizes[1]}
            status, answer = await call(gateway, "POST", "/workers", {"url": worker.url})
            assert status == (201 if fits else 409)
            other = "decode" if decoder is None else "prefill"
            said = f"--tp-size: cluster's {other} workers 2, worker {sizes[1]}; transfer backend"
            assert fits or said in answer["error"]["message"]


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (None, "without the ps_sglang plugin"),
        ({"problem": "no config.json"}, "no config.json"),
        ({"role": "null"}, "plain server"),
    ],
)
async def test_what_cannot_be_a_worker_is_told_why(
    gateway: Setup, told: dict[str, Any] | None, said: str
) -> None:
    worker = await gateway.cluster.start("c-0", "c")
    worker.facts = worker.facts and (None if told is None else worker.facts | told)
    status, message = await refused(gateway, "POST", "/workers", {"url": worker.url})
    assert status == 409
    assert said in message


async def test_a_decoder_without_a_manifest_joins_only_if_allowed(gateway: Setup) -> None:
    worker = await gateway.cluster.start("c-0", "c")
    assert worker.facts is not None
    worker.facts["trained_on"] = None
    body = {"url": worker.url}
    status, message = await refused(gateway, "POST", "/workers", body)
    assert (status, "prefillshare.json" in message) == (409, True)
    status, _ = await call(gateway, "POST", "/workers", {**body, "allow_unverified": True})
    assert status == 201


async def test_a_worker_joins_once(gateway: Setup) -> None:
    again = {"url": gateway.decode().url}
    status, message = await refused(gateway, "POST", "/workers", again)
    assert (status, "already: 'a-0'" in message) == (409, True)
    worker = await gateway.cluster.start("c-0", "c")
    body = {"url": worker.url, "name": "a-0"}
    status, message = await refused(gateway, "POST", "/workers", body)
    assert (status, "'a-0' is taken" in message) == (409, True)


async def test_a_prefill_worker_with_other_weights(gateway: Setup) -> None:
    """It says that it is of the same base, and its weights are others."""
    worker = await gateway.cluster.start("prefill-1", None)
    assert worker.facts is not None
    worker.facts["weights"] = "w1:other"
    status, message = await refused(gateway, "POST", "/workers", {"url": worker.url})
    assert (status, "weights of the base: cluster w1:base, worker w1:other" in message) == (
        409,
        True,
    )


async def test_one_worker_under_two_addresses(gateway: Setup) -> None:
    worker = await gateway.cluster.start("c-0", "c")
    assert (await call(gateway, "POST", "/workers", {"url": worker.url}))[0] == 201
    for one, name in ((worker, f"decode-c-127.0.0.1:{worker.port}"), (gateway.decode(), "a-0")):
        body = {"url": f"http://localhost:{one.port}"}
        status, message = await refused(gateway, "POST", "/workers", body)
        assert (status, f"is in the cluster already: {name!r}" in message) == (409, True)
    assert len(await states(gateway)) == 4


async def test_nothing_to_compare_with() -> None:
    async with Cluster.running() as cluster:
        for known in cluster.workers:
            await known.stop()
        worker = await cluster.start("c-0", "c")
        async with serving(cluster) as gateway:
            status, message = await refused(gateway, "POST", "/workers", {"url": worker.url})
            assert (status, "what a new one must have in common" in message) == (503, True)
            assert set((await states(gateway)).values()) == {"starting"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "url"),
        ([], "object"),
        ({"url": "10.0.0.2:30000"}, "http://"),
        ({"url": "http://10.0.0.2"}, "http://"),
        ({"url": "http://[::1"}, "http://"),
        ({"url": "http://127.0.0.1:1", "name": "a/b"}, "`name`"),
        ({"url": "http://127.0.0.1:1", "decoder": ""}, "`decoder`"),
        ({"url": "http://127.0.0.1:1", "color": 1}, "color"),
        ({"url": "http://127.0.0.1:1"}, "no SGLang worker at http://127.0.0.1:1"),
    ],
)
async def test_a_wrong_request_to_join(gateway: Setup, body: Any, said: str) -> None:
    status, message = await refused(gateway, "POST", "/workers", body)
    assert status == 400
    assert said in message


async def test_some_other_server_is_no_worker(gateway: Setup) -> None:
    status, message = await refused(gateway, "POST", "/workers", {"url": gateway.url})
    assert status == 400
    assert "does not show that it has the cluster" in message


# Draining and leaving.


async def test_a_draining_worker_gets_nothing_new(replicated: Setup) -> None:
    first, second = replicated.cluster.decode["a"]
    status, answer = await call(replicated, "POST", "/workers/a-0/drain")
    assert (status, answer["state"]) == (200, "draining")
    await answered_by(replicated, second, 4)
    assert not first.requests
    assert (await call(replicated, "POST", "/workers/a-0/resume"))[1]["state"] == "good"
    await answered_by(replicated, first)


async def test_a_decoder_whose_workers_all_drain_says_so(gateway: Setup) -> None:
    await call(gateway, "POST", "/workers/a-0/drain")
    status, message = await refused(gateway, "POST", ROUTE, BODY)
    assert (status, "a-0 is draining" in message) == (503, True)
    assert (await call(gateway, "GET", "/health"))[0] == 503
    assert (await call(gateway, "GET", "/models/b/health"))[0] == 200


async def test_a_worker_leaves_when_it_has_finished(replicated: Setup) -> None:
    first, second = replicated.cluster.decode["a"]
    for worker in (first, second):
        worker.plan.step = asyncio.Semaphore(0)
    requests = [asyncio.create_task(replicated.post(ROUTE, BODY)) for _ in range(2)]
    await first.saw(1)
    await second.saw(1)
    leaving = asyncio.create_task(call(replicated, "DELETE", "/workers/a-0"))
    while (await states(replicated))["a-0"] != "draining":
        pass
    status, message = await refused(replicated, "DELETE", "/workers/a-0")
    assert (status, "is leaving" in message) == (409, True)
    assert (await refused(replicated, "POST", "/workers/a-0/resume"))[0] == 409
    assert not leaving.done()
    for worker in (first, second):
        assert worker.plan.step is not None
        for _ in range(3):
            worker.plan.step.release()
    assert await leaving == (200, {"name": "a-0", "removed": True})
    assert [status for status, _ in await asyncio.gather(*requests)] == [200, 200]
    assert set(await states(replicated)) == {"prefill-0", "prefill-1", "a-1"}


async def test_leaving_at_once_moves_what_has_not_begun(replicated: Setup) -> None:
    first, second = replicated.cluster.decode["a"]
    first.plan = second.plan = Plan(hang=True)
    requests = [asyncio.create_task(replicated.post(ROUTE, BODY)) for _ in range(2)]
    await first.saw(1)
    await second.saw(1)
    second.plan = Plan()
    waiting = asyncio.create_task(call(replicated, "DELETE", "/workers/a-0"))
    while (await states(replicated))["a-0"] != "draining":
        pass
    assert (await call(replicated, "DELETE", "/workers/a-0?now=1"))[0] == 200
    assert (await waiting)[0] == 200
    await first.saw_hang_up()
    done, running_still = await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
    assert [one.result()[0] for one in done] == [200]
    for one in running_still:
        one.cancel()


async def test_leaving_at_once_moves_a_stream_or_ends_it_with_an_error(replicated: Setup) -> None:
    for worker in replicated.cluster.decode["a"]:
        worker.plan.step = asyncio.Semaphore(1)
    async with replicated.http.post(
        replicated.url + ROUTE, json={**BODY, "stream": True}
    ) as response:
        await response.content.readuntil(b"\n\n")
        first, second = sorted(replicated.cluster.decode["a"], key=lambda one: not one.requests)
        assert (await call(replicated, "DELETE", f"/workers/{first.name}?now=1"))[0] == 200
        await second.saw(1)
        assert second.plan.step is not None
        second.plan.step.release()
        await response.content.readuntil(b"\n\n")
        assert (await call(replicated, "DELETE", f"/workers/{second.name}?now=1"))[0] == 200
        last = (await response.text()).strip().split("\n\n")[-1]
        error = json.loads(last.removeprefix("data: "))["error"]
    assert f"decode worker '{second.name}' is unreachable: it was removed" in error["message"]


async def test_a_caller_that_hangs_up_does_not_stop_the_leaving(replicated: Setup) -> None:
    first = replicated.cluster.decode["a"][0]
    first.plan.step = asyncio.Semaphore(0)
    requests = [asyncio.create_task(replicated.post(ROUTE, BODY)) for _ in range(2)]
    await first.saw(1)
    leaving = asyncio.create_task(call(replicated, "DELETE", "/workers/a-0"))
    while (await states(replicated))["a-0"] != "draining":
        pass
    leaving.cancel()
    await asyncio.wait({leaving})
    for _ in range(3):
        first.plan.step.release()
    await asyncio.gather(*requests)
    while "a-0" in await states(replicated):
        pass


async def test_a_decoder_leaves_with_its_last_worker(gateway: Setup) -> None:
    assert (await call(gateway, "DELETE", "/workers/b-0"))[0] == 200
    status, message = await refused(gateway, "POST", ROUTE, {**BODY, "model": "b"})
    assert (status, "'b' does not exist" in message) == (404, True)


async def test_the_last_prefill_worker_stays(replicated: Setup) -> None:
    assert (await call(replicated, "DELETE", "/workers/prefill-0"))[0] == 200
    status, message = await refused(replicated, "DELETE", "/workers/prefill-1")
    assert (status, "add another first" in message) == (409, True)
    assert (await replicated.post(ROUTE, BODY))[0] == 200


async def test_a_prefill_worker_that_drains_does_not_count(replicated: Setup) -> None:
    await call(replicated, "POST", "/workers/prefill-1/drain")
    assert (await refused(replicated, "DELETE", "/workers/prefill-0"))[0] == 409
    assert (await call(replicated, "DELETE", "/workers/prefill-1"))[0] == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "drain"), ("POST", "resume"), ("POST", "swap"), ("DELETE", "")],
)
async def test_an_unknown_worker(gateway: Setup, method: str, path: str) -> None:
    status, message = await refused(gateway, method, f"/workers/c-0/{path}".rstrip("/"))
    assert status == 404
    assert "no worker 'c-0'; there are prefill-0, a-0, b-0" in message


async def test_a_wrong_flag(gateway: Setup) -> None:
    status, message = await refused(gateway, "DELETE", "/workers/a-0?now=yes")
    assert (status, "`now` must be 0 or 1, not 'yes'" in message) == (400, True)


# Other weights.


async def test_a_swap_is_rolling(replicated: Setup) -> None:
    """Requests go to the other worker of the decoder meanwhile."""
    first, second = replicated.cluster.decode["a"]
    first.load = asyncio.Semaphore(0)
    swap = asyncio.create_task(
        call(replicated, "POST", "/workers/a-0/swap", {"model_path": "/models/v2"})
    )
    while not first.weights:
        await answered_by(replicated, second)
    assert (await states(replicated))["a-0"] == "draining"
    before = len(first.requests)
    await answered_by(replicated, second, 4)
    assert len(first.requests) == before
    status, message = await refused(
        replicated, "POST", "/workers/a-0/swap", {"model_path": "/models/v3"}
    )
    assert (status, "is being swapped" in message) == (409, True)
    for method, path in (
        ("POST", "/drain"), ("POST", "/resume"), ("DELETE", ""), ("DELETE", "?now=1"),
    ):  # fmt: skip
        assert (await refused(replicated, method, f"/workers/a-0{path}"))[0] == 409
    first.load.release()
    status, answer = await swap
    assert (status, answer["state"], answer["model_path"]) == (200, "good", "/models/v2")
    await answered_by(replicated, first)
    first.load.release()
    body = {"model_path": "/models/v3"}
    assert (await call(replicated, "POST", "/workers/a-0/swap", body))[0] == 200
    assert (first.weights, second.weights) == (["/models/v2", "/models/v3"], [])


async def test_a_swap_waits_for_the_workers_requests(replicated: Setup) -> None:
    first, second = replicated.cluster.decode["a"]
    first.plan.step = second.plan.step = asyncio.Semaphore(0)
    requests = [asyncio.create_task(replicated.post(ROUTE, BODY)) for _ in range(2)]
    await first.saw(1)
    swap = asyncio.create_task(
        call(replicated, "POST", "/workers/a-0/swap", {"model_path": "/models/v2"})
    )
    while (await states(replicated))["a-0"] != "draining":
        pass
    for _ in range(20):  # time in which a swap that waits for nothing would get through
        await states(replicated)
    for _ in range(6):
        first.plan.step.release()
    assert (await swap)[0] == 200
    assert first.running_at_load == [0]
    await asyncio.gather(*requests)


async def test_the_only_worker_of_a_decoder_keeps_requests_waiting(gateway: Setup) -> None:
    """It is not drained: SGLang holds new requests back while it loads."""
    worker = gateway.decode()
    worker.load = asyncio.Semaphore(0)
    swap = asyncio.create_task(
        call(gateway, "POST", "/workers/a-0/swap", {"model_path": "/models/v2"})
    )
    async with worker.arrived:
        await worker.arrived.wait_for(lambda: worker.weights)
    assert (await states(gateway))["a-0"] == "good"
    assert (await gateway.post(ROUTE, BODY))[0] == 200
    worker.load.release()
    assert (await swap)[0] == 200


async def test_a_refused_swap_keeps_the_worker(replicated: Setup) -> None:
    first = replicated.cluster.decode["a"][0]
    first.refuse_weights = "base fingerprint: base ps1:x, decoder ps1:y"
    status, message = await refused(
        replicated, "POST", "/workers/a-0/swap", {"model_path": "/models/v2"}
    )
    assert status == 409
    assert message == (
        "decode worker 'a-0' keeps its weights: base fingerprint: base ps1:x, decoder ps1:y"
    )
    assert (await states(replicated))["a-0"] == "good"
    await answered_by(replicated, first)


async def test_a_swap_does_not_end_a_drain(replicated: Setup) -> None:
    await call(replicated, "POST", "/workers/a-0/drain")
    body = {"model_path": "/models/v2"}
    assert (await call(replicated, "POST", "/workers/a-0/swap", body))[1]["state"] == "draining"


async def test_a_swap_of_a_worker_that_is_gone(replicated: Setup) -> None:
    await replicated.decode().stop()
    body = {"model_path": "/models/v2"}
    status, message = await refused(replicated, "POST", "/workers/a-0/swap", body)
    assert (status, "is unreachable" in message) == (503, True)
    assert (await replicated.post(ROUTE, BODY))[0] == 200


@pytest.mark.parametrize("body", [{}, {"model_path": ""}, {"model_path": 3}, {"path": "x"}, []])
async def test_a_wrong_swap(gateway: Setup, body: Any) -> None:
    assert (await refused(gateway, "POST", "/workers/a-0/swap", body))[0] == 400
    status, message = await refused(
        gateway, "POST", "/workers/prefill-0/swap", {"model_path": "/models/v2"}
    )
    assert (status, "weights are the base's" in message) == (400, True)


async def test_weights_are_swapped_behind_a_gateway_of_one_decoder() -> None:
    async with running(decoders=("a",)) as gateway:
        body = {"model_path": "/models/v2"}
        assert (await call(gateway, "POST", "/workers/a-0/swap", body))[0] == 200
        assert gateway.decode().weights == ["/models/v2"]
