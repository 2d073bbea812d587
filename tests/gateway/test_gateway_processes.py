"""Several gateway processes behind one port act as one, whichever of them is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ps_sglang.errors import UsageError
from ps_sglang.gateway.access import key_file
from ps_sglang.gateway.access.key_file import KeyEntry
from ps_sglang.gateway.access.limits import KeyLimits
from ps_sglang.gateway.access.principal import KeyRole, Principal
from ps_sglang.gateway.limits import GatewayLimits
from ps_sglang.gateway.peers.peers import GatewayPeers
from tests.gateway.processes_setup import Several, several


@pytest.fixture
async def two() -> AsyncIterator[Several]:
    """Two processes before two prefill workers and two decode workers of `a`."""
    async with several(prefill=2, decoders=("a",), replicas=2) as made:
        yield made


def body(prompt: str = "x", **fields: Any) -> dict[str, Any]:
    return {"text": prompt, "model": "a", **fields}


def loads(two: Several, process: int) -> dict[str, tuple[int, int, int]]:
    return {
        one.name: (one.load.requests, one.load.queued_tokens, one.load.moving_tokens)
        for one in two.gateway(process).pool
    }


def states(two: Several, process: int) -> dict[str, str]:
    return {one.name: one.state for one in two.gateway(process).pool}


async def until_busy(two: Several, process: int) -> None:
    """Until a request is at work at a process."""
    while not two[process].pending():
        await two.agree()
    await two.agree()


async def test_all_serve(two: Several) -> None:
    for process in (0, 1):
        status, answer = await two[process].post("/generate", body())
        assert (status, answer["text"].split("-")[0]) == (200, "a")


async def test_a_request_counts_as_load_of_its_workers_everywhere(two: Several) -> None:
    gate = asyncio.Event()
    for worker in two.cluster.decode["a"]:
        worker.plan.gate = gate
    for asked, other in ((1, 0), (0, 1)):
        waiting = asyncio.create_task(two[asked].post("/generate", body("word " * 50)))
        await until_busy(two, asked)
        assert loads(two, asked) == loads(two, other)
        assert sum(requests for requests, _, _ in loads(two, other).values()) == 2
        gate.set()
        assert (await waiting)[0] == 200
        gate.clear()
        await two.agree()
        assert set(loads(two, other).values()) == {(0, 0, 0)}


async def test_prompts_sent_together_to_two_processes_share_a_prefill_worker(two: Several) -> None:
    gate = asyncio.Event()
    for worker in two.cluster.decode["a"]:
        worker.plan.gate = gate
    first = asyncio.create_task(two[0].post("/generate", body("word " * 500)))
    await until_busy(two, 0)
    second = asyncio.create_task(two[1].post("/generate", body("word " * 500)))
    await until_busy(two, 1)
    gate.set()
    assert [status for status, _ in await asyncio.gather(first, second)] == [200, 200]
    assert sorted(len(one.requests) for one in two.cluster.prefill) == [0, 2]


async def test_a_conversation_stays_with_its_workers(two: Several) -> None:
    """Its prompts share nothing, so nothing but the session keeps it."""
    for number in range(6):
        sent = body(f"{number} " * 50, session_id="talk")
        assert (await two[number % 2].post("/generate", sent))[0] == 200
        await two.agree()
    assert sorted(len(one.requests) for one in two.cluster.prefill) == [0, 6]
    assert sorted(len(one.requests) for one in two.cluster.decode["a"]) == [0, 6]


@pytest.mark.parametrize("ended_at", [0, 1])
async def test_a_session_ends_at_all(two: Several, ended_at: int) -> None:
    for worker in two.cluster.decode["a"]:
        worker.plan.hang = True
    waiting = [
        asyncio.create_task(two[process].post("/generate", body(session_id="talk")))
        for process in (0, 1)
    ]
    for process in (0, 1):
        await until_busy(two, process)
    while sum(loads(two, 0)[one.name][0] for one in two.gateway(0).pool.decode()) < 2:
        await two.agree()
    async with two[ended_at].http.delete(two[ended_at].url + "/sessions/talk") as response:
        answer = await response.json()
    assert (response.status, answer["aborted"]) == (200, 2)
    ends = [(status, said["error"]["code"]) for status, said in await asyncio.gather(*waiting)]
    assert ends == [(409, "session_ended")] * 2
    async with two[1 - ended_at].http.delete(two[1 - ended_at].url + "/sessions/talk") as response:
        assert response.status == 404


async def test_a_request_is_aborted_by_whichever_is_asked(two: Several) -> None:
    for worker in two.cluster.decode["a"]:
        worker.plan.hang = True
    waiting = asyncio.create_task(two[1].post("/generate", body(rid="mine")))
    await until_busy(two, 1)
    async with two[0].http.post(two[0].url + "/abort_request", json={"rid": "mine"}) as response:
        assert response.status == 200
    assert (await waiting)[0] == 499


async def test_a_limit_holds_for_all_together() -> None:
    changes = {"limits": GatewayLimits(max_concurrent_requests=1)}
    async with several(changes=changes) as two:
        gate = two.cluster.decode["a"][0].plan.gate = asyncio.Event()
        waiting = asyncio.create_task(two[0].post("/generate", body()))
        await until_busy(two, 0)
        status, answer = await two[1].post("/generate", body())
        assert (status, answer["error"]["code"]) == (429, "rate_limit_exceeded")
        gate.set()
        assert (await waiting)[0] == 200
        await two.agree()
        assert (await two[1].post("/generate", body()))[0] == 200


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, dict[str, str]]:
    """A file with a key that may send 2 requests a minute, and the headers that show it."""
    secret, file = key_file.new_secret(), tmp_path / "keys"
    holder = Principal("k", KeyRole.USER, "t", KeyLimits(requests_per_minute=2))
    file.write_text(f"{KeyEntry(holder, key_file.digest_of(secret))}\n")
    return str(file), {"Authorization": f"Bearer {secret}"}


async def test_a_keys_rate_is_one_for_all(keys: tuple[str, dict[str, str]]) -> None:
    file, headers = keys
    async with several(changes={"api_keys": file}) as two:
        statuses = []
        for process in (0, 1, 0, 1):
            statuses.append((await two[process].post("/generate", body(), headers=headers))[0])
            await two.agree()
        assert statuses == [200, 200, 429, 429]
        # A user's key opens no more at another process than at the owner.
        async with two[1].http.get(two[1].url + "/workers", headers=headers) as response:
            assert response.status == 403


async def test_what_is_passed_on_counts_once(keys: tuple[str, dict[str, str]]) -> None:
    file, headers = keys
    asked = {"model": "a", "input": "x"}
    async with several(changes={"api_keys": file}) as two:
        statuses = []
        for _ in range(3):
            statuses.append((await two[1].post("/v1/responses", asked, headers=headers))[0])
            await two.agree()
        assert statuses == [200, 200, 429]


async def test_nobody_names_himself(two: Several) -> None:
    """The header by which processes pass a name on is nobody else's."""
    claim = {"x-ps-sglang-principal": '{"name":"k","role":"admin","tenant":"t","limits":{}}'}
    for process in (0, 1):
        status, _ = await two[process].post("/generate", body(session_id="s"), headers=claim)
        assert status == 200
        assert two.gateway(process).sessions.of("t").get("s") is None


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    return tmp_path


async def test_processes_meet_only_where_nobody_else_comes(open_folder: Path) -> None:
    with pytest.raises(UsageError, match="chmod 700"):
        await GatewayPeers(open_folder, 0, 2).start()
