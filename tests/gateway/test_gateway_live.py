"""The page's files, and the data that it shows."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from ps_sglang.gateway.routes import live
from ps_sglang.gateway.telemetry import activity, live_share
from tests.gateway.gateway_setup import Setup
from tests.gateway.keys_setup import add_key, as_, running_with_keys
from tests.gateway.live_setup import Shown, showing
from tests.support.standin_engine import CHAT, COMPLETIONS, Plan

CONTEXT = "The system asks the user a question"
FILES = [one.name for one in files("ps_sglang.gateway").joinpath("page").iterdir()]


@pytest.fixture
async def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shown]:
    monkeypatch.setattr(live, "FRESH_SECONDS", 0.0)
    async with showing(tmp_path) as one:
        yield one


# -- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", *(f"page/{name}" for name in FILES)])
async def test_a_file_needs_nothing_from_elsewhere(gateway: Setup, name: str) -> None:
    async with gateway.http.get(f"{gateway.url}/{name}") as response:
        assert response.status == 200
        policy = response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
        text = await response.text()
    assert policy.split("; ")[0] == "default-src 'self'"
    assert "unsafe" not in policy
    assert not set(re.findall(r"https?://[^/\"']+", text)) - {"http://www.w3.org"}
    if text.startswith("<!doctype"):
        assert not re.search(r"<style|\son\w+=|\sstyle=|<script[^>]*>[^<]", text)
    assert "innerHTML" not in text
    assert "insertAdjacentHTML" not in text


@pytest.mark.parametrize("name", ["page.html", "..%2fapp.py", "%2e%2e%2fapp.py", "a.js%00"])
async def test_no_other_file_is_given(gateway: Setup, name: str) -> None:
    async with gateway.http.get(f"{gateway.url}/page/{name}") as response:
        assert response.status == 404
        assert (await response.json())["error"]["message"]


# -- data ----------------------------------------------------------------------------------------


async def test_workers_and_their_load(shown: Shown) -> None:
    tokens = await shown.store(shown.setup.prefill, CONTEXT)
    workers = {one["name"]: one for one in (await shown.live())["workers"]}
    assert workers.keys() == {"prefill-0", "a-0", "b-0"}
    prefill = workers["prefill-0"]
    assert (prefill["role"], prefill["state"], prefill["decoders"]) == ("prefill", "good", [])
    assert (prefill["running"], prefill["waiting"], prefill["capacity"]) == (1, 0, 1000)
    assert prefill["cached_tokens"] == tokens
    assert workers["b-0"]["decoders"] == ["b"]


async def test_a_worker_that_says_no_load(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it said is shown for a while, and then nothing."""
    await shown.live()
    await shown.setup.decode("b").stop()
    for stale, expected in ((1000.0, 1), (0.0, None)):
        monkeypatch.setattr(live, "STALE_SECONDS", stale)
        workers = {one["name"]: one for one in (await shown.live())["workers"]}
        assert workers["b-0"]["running"] == expected
        assert workers["a-0"]["running"] == 1


async def test_who_speaks(shown: Shown) -> None:
    decode = shown.setup.decode()
    decode.plan.step = asyncio.Semaphore(2)
    prefilled = shown.setup.prefill.plan = Plan(gate=asyncio.Event())
    body = {"model": "a", "prompt": CONTEXT, "stream": True, "session_id": "<i>one</i>"}
    url = shown.setup.url + COMPLETIONS
    asking = asyncio.create_task(shown.setup.http.post(url, json=body))
    await decode.saw(1)
    (request,) = (await shown.live())["requests"]
    assert (request["decoder"], request["session"]) == ("a", "<i>one</i>")
    assert (request["phase"], request["produced"]) == ("prefill", 0)
    assert (request["prefill_worker"], request["decode_worker"]) == ("prefill-0", "a-0")
    assert prefilled.gate is not None
    prefilled.gate.set()
    while (request := (await shown.live())["requests"][0])["produced"] < 2:
        assert request["decoder"] == "a"
    assert request["phase"] == "decode"
    decode.plan.step.release()
    async with await asking as response:
        await response.read()
    while (content := await shown.live())["requests"]:
        pass
    produced = {one["name"]: one["produced"] for one in content["workers"]}
    assert produced["a-0"] >= 3
    assert produced["b-0"] == 0


async def test_the_tree_tells_who_read_a_branch_and_what_that_saved(shown: Shown) -> None:
    """`a` computes a context; `b` finds it, and computes what it goes on with."""
    longer = CONTEXT + " and the assistant answers it step by step. "
    first = await shown.store(shown.setup.prefill, CONTEXT + " and one model reads")
    second = await shown.store(shown.setup.prefill, longer)
    shared = len(shown.tokens(CONTEXT + " and"))
    await shown.store(shown.setup.decode("b"), longer)
    await shown.turn("a", CONTEXT + " and one model reads the", first)
    await shown.turn("b", longer + "x", second - shared)
    content = await shown.live()
    (trunk,) = content["tree"]["branches"]
    assert trunk["excerpt"].startswith("The system asks")
    assert trunk["tokens"] == shared
    assert trunk["held"] == {"prefill-0": shared, "b-0": shared}
    assert trunk["used"] == {
        "a": {"turns": 1, "computed": shared, "found": 0},
        "b": {"turns": 1, "computed": 0, "found": shared},
    }
    after = {next(iter(one["used"])): one for one in trunk["branches"]}
    assert after["a"]["used"]["a"]["computed"] == first - shared
    assert after["b"]["used"]["b"]["computed"] == after["b"]["tokens"] == second - shared
    assert content["tokens"]["b"]["computed"] == second - shared
    assert content["tokens"]["b"]["own"] == shared
    workers = {one["name"]: one for one in content["workers"]}
    assert workers["prefill-0"]["computed"] == first + second - shared


async def test_another_tenants_branch_is_another(shown: Shown) -> None:
    for salt in ("", "one", "two"):
        await shown.store(shown.setup.prefill, CONTEXT, salt)
    await shown.turn("a", CONTEXT + " x", 1, cache_salt="two")
    branches = (await shown.live())["tree"]["branches"]
    assert len(branches) == len({one["salt"] for one in branches}) == 3
    assert "two" not in {one["salt"] for one in branches}
    assert [bool(one["used"]) for one in branches] == [True, False, False]


async def test_times_of_turns(shown: Shown) -> None:
    for decoder, count in (("a", 2), ("b", 1)):
        for _ in range(count):
            await shown.turn(decoder, CONTEXT, 0, stream=False)
    async with shown.setup.http.post(
        shown.setup.url + CHAT,
        json={"model": "b", "stream": True, "messages": [{"role": "user", "content": "x"}]},
    ) as response:
        await response.read()
    await shown.setup.post(COMPLETIONS, {"model": "a", "prompt": "x", "max_tokens": -1})
    while (turns := (await shown.live())["turns"])["all"]["count"] < 4:
        pass
    assert {name: times["count"] for name, times in turns["decoders"].items()} == {"a": 2, "b": 2}
    assert turns["decoders"]["a"]["first_token"] == {"p50": None, "p95": None}
    streamed = turns["decoders"]["b"]
    assert 0 < streamed["first_token"]["p50"] == streamed["first_token"]["p95"]
    assert 0 < streamed["turn"]["p50"] <= streamed["turn"]["p95"]
    slowest = [times["turn"]["p95"] for times in turns["decoders"].values()]
    assert turns["all"]["turn"]["p95"] == max(slowest)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], (None, None)), ([3.0], (3.0, 3.0)), ([float(n) for n in range(20, 0, -1)], (10, 19))],
)
def test_quantiles(values: list[float], expected: tuple[float, float]) -> None:
    assert tuple(live._quantiles(values).values()) == expected


async def test_what_failed_is_no_turn(shown: Shown) -> None:
    shown.setup.decode().plan.refuse = (400, {"message": "no"})
    status, _ = await shown.setup.post(COMPLETIONS, {"model": "a", "prompt": CONTEXT})
    assert status == 400
    await shown.concluded()
    assert (await shown.live())["turns"]["all"]["count"] == 0


async def test_turns_are_remembered_for_a_while(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity, "MOST_TURNS", 3)
    for number in range(5):
        await shown.turn("a", f"{CONTEXT} {number}", 0)
    kept = [turn.use.text[-1:] for turn in shown.gateway.activity.turns() if turn.use]
    assert kept == [b"2", b"3", b"4"]
    monkeypatch.setattr(activity, "MOST_BYTES", 1)
    assert len(shown.gateway.activity.turns()) == 1
    monkeypatch.setattr(activity, "SECONDS", -1.0)
    assert len(shown.gateway.activity.turns()) == 0


async def test_what_is_shown_has_a_bounded_size(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MOST_WORKERS", "MOST_BRANCHES"):
        monkeypatch.setattr(live, name, 2)
    monkeypatch.setattr(live_share, "MOST_REQUESTS", 2)
    for text in "uvwxyz":
        await shown.store(shown.setup.prefill, text)
    gate = shown.setup.decode().plan.gate = asyncio.Event()
    bodies = [{"model": "a", "prompt": CONTEXT, "session_id": "s" * 256}] * 3
    asking = [asyncio.create_task(shown.setup.post(COMPLETIONS, body)) for body in bodies]
    await shown.setup.decode().saw(3)
    content = await shown.live()
    assert (len(content["workers"]), content["hidden_workers"]) == (2, 1)
    assert (len(content["requests"]), content["hidden_requests"]) == (2, 1)
    assert (len(content["tree"]["branches"]), content["tree"]["hidden"]) == (2, 4)
    assert len(content["requests"][0]["session"]) < 256
    gate.set()
    await asyncio.gather(*asking)


async def test_all_who_look_on_cost_as_much_as_one(gateway: Setup) -> None:
    async def look() -> Any:
        async with gateway.http.get(gateway.url + "/v1/live") as response:
            return (await response.json())["time"]

    assert len(set(await asyncio.gather(*(look() for _ in range(5))))) == 1


async def test_the_data_is_for_admins_and_the_page_for_all(tmp_path: Path) -> None:
    async with running_with_keys(tmp_path / "keys") as gateway:
        for headers, status in (({}, 401), (as_("alice"), 403), (as_("ops"), 200)):
            async with gateway.http.get(gateway.url + "/v1/live", headers=headers) as response:
                assert response.status == status
        for name in ("/", "/page/main.js"):
            async with gateway.http.get(gateway.url + name) as response:
                assert response.status == 200


async def test_tenants_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FRESH_SECONDS", 0.0)
    for name in ("alice", "ops"):
        add_key(tmp_path / "keys", name)
    async with showing(tmp_path, as_("ops"), api_keys=str(tmp_path / "keys")) as shown:
        decode = shown.setup.decode()
        decode.plan.gate = asyncio.Event()
        body = {"model": "a", "prompt": CONTEXT, "cache_salt": "own"}
        asking = asyncio.create_task(shown.setup.post(COMPLETIONS, body, headers=as_("alice")))
        await decode.saw(1)
        await shown.store(shown.setup.prefill, CONTEXT, decode.requests[0]["cache_salt"])
        content = await shown.live()
        assert content["requests"][0]["tenant"] == "team-a"
        (branch,) = content["tree"]["branches"]
        assert branch["tenant"] == "team-a"
        assert branch["salt"] not in ("", "own")
        decode.plan.gate.set()
        assert (await asking)[0] == 200
