"""Adapters come, go and are replaced before several gateway processes: for all, or for none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from ps_sglang.gateway.peers import peers
from ps_sglang.gateway.peers.messages import Question
from tests.gateway.gateway_setup import QUICK
from tests.gateway.processes_setup import Several, several
from tests.gateway.test_gateway_processes_workers import call
from tests.support.standin_engine import COMPLETIONS, Adapters

ADAPTERS = {"math": "/math"}
NEW = {"name": "new", "path": "/new"}


@pytest.fixture
async def three() -> AsyncIterator[Several]:
    """Three processes before two adapter workers with `math`."""
    async with several(3, QUICK, decoders=(), adapters=ADAPTERS, replicas=2) as made:
        yield made


@pytest.fixture
async def two() -> AsyncIterator[Several]:
    """Two processes before two adapter workers with `math`."""
    async with several(2, QUICK, decoders=(), adapters=ADAPTERS, replicas=2) as made:
        yield made


def adapters(made: Several, number: int = 0) -> Adapters:
    found = made.cluster.lora[number].adapters
    assert found is not None
    return found


async def ask(made: Several, process: int, model: str) -> tuple[int, str]:
    """Status, and who answered."""
    sent = {"model": model, "prompt": "one two"}
    status, answer = await made[process].post(COMPLETIONS, sent)
    return status, answer["choices"][0]["text"].partition("-")[0] if status == 200 else ""


def names(made: Several, process: int, model: str) -> dict[str, str]:
    """SGLang's name of a decoder on each worker that may be asked for it."""
    served = made.gateway(process).pool.decoders[model]
    return {one.name: served.lora_names[one] for one in served.workers}


async def known(made: Several, process: int, model: str, lora_name: str) -> None:
    """Wait until a process sends new requests to this version."""
    while model not in made.gateway(process).pool.decoders or set(
        names(made, process, model).values()
    ) != {lora_name}:
        await made.agree()


# Whoever is told that it is done finds it done at each process.


@pytest.mark.parametrize("asked", [0, 2])
async def test_an_added_decoder_is_served_by_all(three: Several, asked: int) -> None:
    status, answer = await call(three, asked, "POST", "/decoders", json=NEW)
    served = [await ask(three, process, "new") for process in (0, 1, 2)]
    assert (status, answer["weights"]) == (201, "w1:/new")
    assert served == [(200, "new@1")] * 3
    await three.agree()
    lists = [await call(three, process, "GET", "/decoders") for process in (0, 1, 2)]
    assert lists[0] == lists[1] == lists[2]
    for number in (0, 1):
        assert adapters(three, number).asked == ["load new@1 /new"]


@pytest.mark.parametrize("asked", [0, 2])
async def test_a_removed_decoder_is_gone_at_all(three: Several, asked: int) -> None:
    assert (await call(three, asked, "DELETE", "/decoders/math"))[0] == 200
    for process in (0, 1, 2):
        assert await ask(three, process, "math") == (404, "")
    assert not adapters(three).here


@pytest.mark.parametrize("asked", [0, 2])
async def test_a_replaced_decoder_is_another_at_all(three: Several, asked: int) -> None:
    status, _ = await call(three, asked, "PUT", "/decoders/math", json={"path": "/other"})
    assert status == 200
    for process in (0, 1, 2):
        assert await ask(three, process, "math") == (200, "math@2")
    assert adapters(three).here == {"math@2": "/other"}


async def test_requests_of_all_processes_keep_the_version_that_they_have(two: Several) -> None:
    gate = asyncio.Event()
    for worker in two.cluster.lora:
        worker.plan.gate = gate
    running = asyncio.create_task(ask(two, 1, "math"))
    while not two[1].pending():
        await two.agree()
    replacing = asyncio.create_task(call(two, 0, "PUT", "/decoders/math", json={"path": "/other"}))
    await known(two, 1, "math", "math@2")
    later = asyncio.create_task(ask(two, 1, "math"))
    await two.agree()
    assert "math@1" in adapters(two).here
    gate.set()
    assert await running == (200, "math@1")
    assert await later == (200, "math@2")
    assert (await replacing)[0] == 200
    assert adapters(two).at_unload == [0]


@pytest.mark.parametrize(
    ("method", "options"), [("PUT", {"json": {"path": "/other"}}), ("DELETE", {})]
)
@pytest.mark.parametrize("dies", [False, True])
async def test_nothing_is_unloaded_before_the_last_request_of_any_process(
    two: Several, method: str, options: dict[str, Any], dies: bool
) -> None:
    """Also of one whose samples have not begun, which no other process can know of."""
    before = two.gateway(1).pool.decoders["math"]
    before.requests.begin()
    changing = asyncio.create_task(call(two, 0, method, "/decoders/math", **options))
    while two.gateway(1).pool.decoders.get("math") is before:
        await two.agree()
    await two.agree()
    assert "math@1" in adapters(two).here
    if dies:
        await two.stop(1)
    else:
        before.requests.end()
    assert (await changing)[0] == 200
    assert "math@1" not in adapters(two).here


# Whoever cannot hear of it.


def hang(made: Several, process: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is there, and answers no other."""

    def answers(question: Question) -> Coroutine[None, None, tuple[int, bytes]]:
        return never()

    async def never() -> tuple[int, bytes]:
        await asyncio.Event().wait()
        return 0, b""

    monkeypatch.setattr(peers, "ANSWER_SECONDS", 0.05)
    made.gateway(process).peers.answers = answers


@pytest.mark.parametrize(
    ("method", "path", "options"),
    [
        ("POST", "/decoders", {"json": NEW}),
        ("PUT", "/decoders/math", {"json": {"path": "/other"}}),
        ("DELETE", "/decoders/math", {}),
    ],
)
async def test_a_process_that_hangs_has_nothing_changed(
    two: Several,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    options: dict[str, Any],
) -> None:
    hang(two, 1, monkeypatch)
    async with two[0].http.request(method, two[0].url + path, **options) as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"]) == (503, "process_silent")
    assert "Gateway process 1 does not answer" in error["message"]
    assert response.headers["retry-after"]
    assert adapters(two).asked == []
    assert await ask(two, 0, "math") == (200, "math@1")


async def test_a_process_that_starts_later_has_what_is_served_now(two: Several) -> None:
    http = two[1].http
    await two.stop(1)
    assert (await call(two, 0, "POST", "/decoders", json=NEW))[0] == 201
    assert (await call(two, 0, "PUT", "/decoders/new", json={"path": "/other"}))[0] == 200
    assert (await call(two, 0, "DELETE", "/decoders/math"))[0] == 200
    await two.start(1, http)
    assert await ask(two, 1, "new") == (200, "new@2")
    assert await ask(two, 1, "math") == (404, "")


# What becomes of workers.


async def test_a_worker_that_serves_a_decoder_no_more_serves_it_nowhere(two: Several) -> None:
    served = two.gateway(0).pool.decoders["math"]
    served.judge(two.gateway(0).pool.adapter_workers[1], "it has other weights")
    await two.agree()
    (problem,) = two.gateway(1).pool.decoders["math"].problems.values()
    assert problem == "it has other weights"
    assert names(two, 1, "math") == {"lora-0": "math@1"}


async def test_a_worker_that_comes_back_has_its_adapters_everywhere(two: Several) -> None:
    url = two.cluster.lora[1].url
    assert (await call(two, 1, "DELETE", "/workers/lora-1"))[0] == 200
    joining = {"url": url, "name": "lora-1"}
    assert (await call(two, 1, "POST", "/workers", json=joining))[0] == 201
    await two.agree()
    assert (
        names(two, 1, "math")
        == names(two, 0, "math")
        == dict.fromkeys(("lora-0", "lora-1"), "math@1")
    )


@pytest.mark.parametrize("keeps", [False, True])
async def test_adapters_outlive_the_owner(keeps: bool) -> None:
    """Its workers join the new one with what they have, one after the other."""
    empty = {"prefill": (), "decode": ()}
    shape: dict[str, Any] = {"decoders": (), "adapters": ADAPTERS, "replicas": 2}
    async with several(2, QUICK, empty, **shape) as two:

        async def join(*names: str) -> None:
            for worker in two.cluster.workers:
                if worker.name in names:
                    joining = {"url": worker.url, "name": worker.name}
                    assert (await call(two, 0, "POST", "/workers", json=joining))[0] == 201
            await two.agree()

        await join("prefill-0", "lora-0", "lora-1")
        assert (await call(two, 1, "POST", "/decoders", json=NEW))[0] == 201
        served, http = two.gateway(1).pool.decoders["new"], two[0].http
        await two.stop(0)
        assert await ask(two, 1, "new") == (200, "new@1")
        await two.start(0, http)
        await join("prefill-0", "lora-0")
        assert two.gateway(1).pool.decoders["new"] is served
        assert names(two, 1, "new").keys() == {"lora-0", "lora-1"}, "the second will join, too"
        if not keeps:
            del adapters(two, 1).here["new@1"]
        await join("lora-1")
        assert names(two, 1, "new") == names(two, 0, "new")
        assert len(names(two, 0, "new")) == 1 + keeps
