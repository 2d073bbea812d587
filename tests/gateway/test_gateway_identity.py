"""A worker that comes back as another: never asked in the first one's name, and refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from ps_sglang.gateway.state import GATEWAY
from tests.gateway.gateway_setup import NEVER, QUICK, Setup, running, serving
from tests.support.standin_engine import COMMON, Cluster, Plan, Worker

ROUTE = "/v1/completions"
BODY = {"prompt": "one two", "model": "a"}
OTHERS: dict[str, tuple[str | None, dict[str, Any], str]] = {
    "another decoder": ("b", {}, "model: wanted a, found b"),
    "other weights": ("a", {"weights": "w1:v2"}, "weights: wanted w1:a, found w1:v2"),
    "another role": (None, {}, "role: wanted decode, found prefill"),
    "another base": (
        "a",
        {"common": {**COMMON, "base fingerprint": "ps1:x"}},
        "base fingerprint: wanted ps1:base, found ps1:x",
    ),
    "another tokenizer": (
        "a",
        {"common": {**COMMON, "tokenizer": "tok1:x"}},
        "tokenizer: wanted None, found tok1:x",
    ),
    "other events": ("a", {"events": "tcp://127.0.0.1:1"}, "events: wanted None, found tcp://"),
    "another context": ("a", {"context_length": 9}, "context length: wanted None, found 9"),
    "less room": ("a", {"capacity": 99}, "the worker holds 99"),
    "no checkpoint": ("a", {"problem": "no config.json"}, "no config.json"),
    "a plain server": ("a", {"role": "null"}, "it is a plain server"),
}


@pytest.fixture
async def unasked() -> AsyncIterator[Setup]:
    """With a key it would not even send its requests, see test_gateway_cluster_key."""
    async with running(NEVER, keyed=False) as setup:
        yield setup


async def entry(gateway: Setup, name: str) -> dict[str, Any]:
    """What /workers says of a worker."""
    async with gateway.http.get(gateway.url + "/workers") as response:
        listed = (await response.json())["workers"]
    return next(one for one in listed if one["name"] == name)


async def becomes(gateway: Setup, name: str, *states: str) -> dict[str, Any]:
    """Wait until a worker is in one of these states; the test's time limit ends a vain wait."""
    while (found := await entry(gateway, name))["state"] not in states:
        pass
    return found


async def replace(gateway: Setup, old: Worker, decoder: str | None, **facts: Any) -> Worker:
    """Another process takes the address of `old`."""
    await old.stop()
    new = Worker(gateway.cluster, "new", decoder)
    assert new.facts is not None
    new.facts |= facts
    await new.start(old.port)
    gateway.cluster.extra.append(new)
    return new


@pytest.mark.parametrize("other", OTHERS)
async def test_another_in_a_decode_workers_place_is_refused(quick: Setup, other: str) -> None:
    decoder, facts, reason = OTHERS[other]
    new = await replace(quick, quick.decode(), decoder, **facts)
    assert reason in (await becomes(quick, "a-0", "refused"))["problem"]
    status, answer = await quick.post(ROUTE, BODY)
    assert (status, answer["error"]["code"]) == (503, "no_worker")
    assert reason in answer["error"]["message"]
    async with quick.http.get(quick.url + "/models/a/health") as response:
        assert response.status == 503
    assert not new.requests
    assert (await quick.post(ROUTE, {**BODY, "model": "b"}))[0] == 200


@pytest.mark.parametrize(
    ("decoder", "facts", "reason"),
    [
        (None, {"bootstrap_port": 9001}, "bootstrap port: wanted 9000, found 9001"),
        (None, {"weights": "w1:x"}, "weights: wanted w1:base, found w1:x"),
        ("a", {}, "role: wanted prefill, found decode"),
    ],
)
async def test_another_in_a_prefill_workers_place_is_refused(
    quick: Setup, decoder: str | None, facts: dict[str, Any], reason: str
) -> None:
    new = await replace(quick, quick.prefill, decoder, **facts)
    assert reason in (await becomes(quick, "prefill-0", "refused"))["problem"]
    assert (await quick.post(ROUTE, BODY))[0] == 503
    assert not new.requests


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_finds_another_before_any_question_does(
    unasked: Setup, role: str, stream: bool
) -> None:
    """The other is there as soon as the first is gone, and both speak for decoder a."""
    old = unasked.prefill if role == "prefill" else unasked.decode()
    assert (await unasked.post(ROUTE, BODY))[0] == 200
    new = await replace(unasked, old, old.decoder, weights="w1:v2")
    status, answer = await unasked.post(ROUTE, {**BODY, "stream": stream})
    assert (status, answer["error"]["code"]) == (503, "worker_unreachable")
    assert answer["error"]["message"].endswith("another process answers at its address")
    assert new.misdirected
    assert not new.requests


async def test_an_answer_that_names_nobody_is_not_given_to_the_client(unasked: Setup) -> None:
    """A server without the plugin does not look whom a request is for."""
    new = await replace(unasked, unasked.decode(), "a")
    new.named = False
    status, answer = await unasked.post(ROUTE, BODY)
    assert (status, answer["error"]["code"]) == (503, "worker_unreachable")
    assert new.requests


async def test_a_server_without_the_plugin_is_refused_and_gets_nothing(quick: Setup) -> None:
    await quick.decode().stop()
    new = Worker(quick.cluster, "new", "a")
    new.facts, new.named, new.plan = None, False, Plan(hang=True)
    await new.start(quick.decode().port)
    quick.cluster.extra.append(new)
    statuses = [(await quick.post(ROUTE, BODY))[0] for _ in range(3)]
    assert statuses == [503, 503, 503]
    found = await becomes(quick, "a-0", "refused")
    assert "start it with PS_SGLANG_ENABLE=1" in found["problem"]
    assert not new.requests


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_the_same_worker_restarted_is_used_again(quick: Setup, role: str) -> None:
    old = quick.prefill if role == "prefill" else quick.decode()
    assert old.facts is not None
    new = await replace(quick, old, old.decoder, capacity=500)
    while (await quick.post(ROUTE, BODY))[0] != 200:
        pass
    assert new.requests
    await becomes(quick, old.name, "good")


async def test_the_right_one_comes_back_after_another(quick: Setup) -> None:
    new = await replace(quick, quick.decode(), "b")
    await becomes(quick, "a-0", "refused")
    right = await replace(quick, new, "a")
    await becomes(quick, "a-0", "good", "trial")
    while (await quick.post(ROUTE, BODY))[0] != 200:
        pass
    assert right.requests


async def test_another_joins_anew(quick: Setup) -> None:
    """What is refused in the first one's name may serve in its own."""
    new = await replace(quick, quick.decode(), "c")
    await becomes(quick, "a-0", "refused")
    status, answer = await quick.post("/workers", {"url": new.url})
    assert (status, answer["decoder"], answer["state"]) == (201, "c", "good")
    assert (await quick.post(ROUTE, {**BODY, "model": "c"}))[0] == 200
    assert (await quick.post(ROUTE, BODY))[0] == 404
    status, answer = await quick.post("/workers", {"url": new.url})
    assert status == 409


async def test_another_joins_anew_only_if_it_fits(quick: Setup) -> None:
    new = await replace(quick, quick.decode(), "c", trained_on="ps1:other")
    await becomes(quick, "a-0", "refused")
    assert (await quick.post("/workers", {"url": new.url}))[0] == 409
    assert (await entry(quick, "a-0"))["state"] == "refused"


async def test_swapped_weights_are_the_workers_own(quick: Setup) -> None:
    """It may come back with those, and not with the ones before."""
    worker = quick.decode()
    assert worker.facts is not None
    worker.facts["weights"] = "w1:v2"
    body = {"model_path": "/models/v2"}
    assert (await quick.post("/workers/a-0/swap", body))[0] == 200
    again = await replace(quick, worker, "a", weights="w1:v2")
    while (await quick.post(ROUTE, BODY))[0] != 200:
        pass
    await replace(quick, again, "a", weights="w1:a")
    assert "weights: wanted w1:v2" in (await becomes(quick, "a-0", "refused"))["problem"]


async def test_weights_go_to_no_other_process(unasked: Setup) -> None:
    new = await replace(unasked, unasked.decode(), "a")
    status, _ = await unasked.post("/workers/a-0/swap", {"model_path": "/models/v2"})
    assert (status, new.weights) == (503, [])


async def test_who_is_there_at_first_must_be_what_is_configured() -> None:
    async with Cluster.running() as cluster:
        for worker, told in (
            (cluster.decode["a"][0], {"model": "b"}),
            (cluster.prefill[0], {"bootstrap_port": 1}),
        ):
            assert worker.facts is not None
            worker.facts |= told
        async with serving(cluster, QUICK) as gateway:
            assert "wanted a, found b" in (await becomes(gateway, "a-0", "refused"))["problem"]
            found = await becomes(gateway, "prefill-0", "refused")
            assert "bootstrap port: wanted 9000, found 1" in found["problem"]


async def test_a_start_is_no_break() -> None:
    """The gateway is there before its workers."""
    async with Cluster.running() as cluster:
        ports = [worker.port for worker in cluster.workers]
        for worker in cluster.workers:
            await worker.stop()
        async with serving(cluster, QUICK) as gateway:
            assert (await becomes(gateway, "a-0", "starting"))["times_broken"] == 0
            status, answer = await gateway.post(ROUTE, BODY)
            assert (status, answer["error"]["code"]) == (503, "no_worker")
            for worker, port in zip(cluster.workers, ports, strict=True):
                await worker.start(port)
            for name in ("prefill-0", "a-0"):
                assert (await becomes(gateway, name, "good", "trial"))["times_broken"] == 0
            assert (await gateway.post(ROUTE, BODY))[0] == 200


async def test_the_events_of_another_are_not_taken_for_the_workers() -> None:
    async with running(QUICK, events=True) as gateway:
        old = gateway.decode()
        assert old.publisher is not None
        worker_cache = gateway.app[GATEWAY].cache_index.worker_cache("a-0")
        while worker_cache.problem is not None:
            await entry(gateway, "a-0")
        address, control = old.publisher.endpoint, old.publisher.control
        old.publisher.shutdown()
        other = Worker(gateway.cluster, "other", "b")
        other.publish(address, control)
        try:
            while "of another process" not in str(worker_cache.problem):
                await entry(gateway, "a-0")
        finally:
            assert other.publisher is not None
            other.publisher.shutdown()
            old.publisher = None
