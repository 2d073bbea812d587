"""What the page shows where several gateway processes serve: the requests of all together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ps_sglang.gateway.routes import live
from tests.gateway.live_setup import Shown, make_tokenizer
from tests.gateway.processes_setup import Several, several
from tests.gateway.test_gateway_processes_adapters import hang
from tests.support.standin_engine import COMPLETIONS

CONTEXT = "The system asks the user a question"


@pytest.fixture
async def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Several]:
    """Two processes that hear what workers of `a` and `b` tell."""
    monkeypatch.setattr(live, "FRESH_SECONDS", 0.0)
    async with several(events=True, tokenizer=make_tokenizer(tmp_path)) as made:
        for process in (0, 1):
            index = made.gateway(process).cache_index
            while not all(index.is_live(name) for name in index.workers):
                await made.agree()
        yield made


async def test_requests_of_all_processes_are_shown(two: Several) -> None:
    gate = two.cluster.decode["a"][0].plan.gate = asyncio.Event()
    sent = {"model": "a", "prompt": CONTEXT}
    asking = []
    for count, process in enumerate((1, 0, 1), start=1):
        asking.append(asyncio.create_task(two[process].post(COMPLETIONS, sent)))
        await two.cluster.decode["a"][0].saw(count)
    for process in (0, 1):
        content = await Shown(two[process], {}).live()
        ids = {one["id"] for one in content["requests"]}
        assert ids == {one["rid"] for one in two.cluster.decode["a"][0].requests}
        assert (content["hidden_requests"], content["hidden_processes"]) == (0, 0)
        (worker,) = (one for one in content["workers"] if one["name"] == "a-0")
        assert worker["requests"] == 3
    gate.set()
    await asyncio.gather(*asking)


async def test_turns_of_all_processes_count(two: Several) -> None:
    """A decoder reads at one process what another decoder's turn at the other has computed."""
    shown = [Shown(two[process], {}) for process in (0, 1)]
    longer = CONTEXT + " and the assistant answers it. "
    first = await shown[0].store(two.cluster.prefill[0], CONTEXT + " and one model reads")
    second = await shown[1].store(two.cluster.prefill[0], longer)
    shared = len(shown[0].tokens(CONTEXT + " and"))
    await shown[0].turn("a", CONTEXT + " and one model reads the", first, stream=False)
    await shown[1].turn("b", longer + "x", second - shared, stream=False)
    content = await shown[1].live()
    assert content["turns"]["all"]["count"] == 2
    assert content["turns"]["decoders"].keys() == {"a", "b"}
    (trunk,) = content["tree"]["branches"]
    assert trunk["used"] == {
        "a": {"turns": 1, "computed": shared, "found": 0},
        "b": {"turns": 1, "computed": 0, "found": shared},
    }
    assert content["tokens"]["a"]["computed"] == first
    assert content["tokens"]["b"]["computed"] == second - shared


async def test_output_of_all_processes_counts(two: Several) -> None:
    sent = {"model": "a", "prompt": CONTEXT, "stream": True}
    events = 0
    for process in (0, 1):
        async with two[process].http.post(two[process].url + COMPLETIONS, json=sent) as response:
            events += (await response.text()).count("data: ")
    for process in (0, 1):
        while two.gateway(process).activity.running():
            await two.agree()
    content = await Shown(two[0], {}).live()
    produced = {one["name"]: one["produced"] for one in content["workers"]}
    assert produced == {"prefill-0": 0, "a-0": events, "b-0": 0}


async def test_a_process_that_hangs_is_missing_and_said_so(
    two: Several, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "ASK_SECONDS", 0.05)
    hang(two, 1, monkeypatch)
    assert (await Shown(two[0], {}).live())["hidden_processes"] == 1
