"""How the faults benchmark judges: what became of a request, and what has not come back."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.faults import __main__ as faults
from benchmarks.faults.client import Client, Ending, Outcome, _Answer, count, judge, streams
from benchmarks.faults.models import Turn
from benchmarks.faults.resources import Resources
from benchmarks.faults.rows import NAMES, ROWS
from benchmarks.faults.soak import slope
from benchmarks.faults.summary import last_line, table
from benchmarks.faults.system import System
from benchmarks.report import REFERENCE, REPOSITORY
from tests.gateway.gateway_setup import running

ERROR = {"message": "decode worker 'a' is unreachable: it died", "code": "worker_unreachable"}
RESOURCES = Resources(
    processes=10, descriptors=500, sockets=200, threads=90, files=30, memory_mb=3000
)


@pytest.mark.parametrize(
    ("answer", "ending"),
    [
        (_Answer(200, [1, 2, 3], whole=True), Ending.EXACT),
        (_Answer(200, [1, 2, 3]), Ending.UNTOLD),  # the stream has no end
        (_Answer(200, [1, 2], whole=True), Ending.UNTOLD),
        (_Answer(200, [1, 3], whole=True), Ending.WRONG),
        (_Answer(200, [1, 2, 3, 4], whole=True), Ending.WRONG),
        (_Answer(200, [1, 2], error=ERROR), Ending.FAILED),
        (_Answer(200, [3], error=ERROR), Ending.WRONG),  # what came before the error counts
        (_Answer(503, error=ERROR, whole=True), Ending.FAILED),
        (_Answer(429, error=ERROR, whole=True), Ending.LIMITED),
        (_Answer(500, error=ERROR, whole=True), Ending.UNTOLD),
        (_Answer(503, error={"code": "x"}, whole=True), Ending.UNTOLD),
        (_Answer(503, error="text", whole=True), Ending.UNTOLD),
    ],
)
def test_how_an_answer_is_judged(answer: _Answer, ending: Ending) -> None:
    assert judge(answer, [1, 2, 3])[0] is ending


def test_events_repeat_what_was_said() -> None:
    answer = _Answer(200)
    for ids in ([1], [1, 2]):
        answer.event(json.dumps({"output_ids": ids, "meta_info": {}}).encode())
    assert (answer.ids, answer.whole) == ([1, 2], False)
    answer.event(b"[DONE]")
    assert answer.whole
    answer.event(json.dumps({"error": ERROR}).encode())
    assert answer.error == ERROR


def outcome(ending: Ending, **changes: Any) -> Outcome:
    return replace(Outcome("agent", "a", True, ending, 1.0, 2.0, 4.0), **changes)


def test_every_request_is_counted_once() -> None:
    outcomes = [outcome(ending) for ending in Ending]
    counted = count(outcomes, may_cut=False)
    # Nobody was there for the one that is not a request.
    assert (counted.requests, counted.lost, counted.limited) == (len(Ending) - 1, 2, 1)
    assert (counted.wrong, counted.unaccounted) == (1, 3)
    assert len(counted.notes) == 4
    assert count(outcomes, may_cut=True).unaccounted == 2


def test_streams_that_a_struck_worker_had_begun() -> None:
    outcomes = [
        outcome(Ending.EXACT, rid="one"),
        outcome(Ending.FAILED, rid="two", by="agent again"),
        outcome(Ending.EXACT, rid="three", streamed=False),
        outcome(Ending.FAILED, rid="four"),
        outcome(Ending.EXACT, rid="five", done=2.5),
    ]
    assert streams(outcomes, {"one", "two", "three", "five"}, 3.0) == (2, 1)


def test_what_has_not_come_back_is_named() -> None:
    assert RESOURCES.not_back(RESOURCES) == []
    assert replace(RESOURCES, threads=80, memory_mb=3100).not_back(RESOURCES) == []
    more = replace(RESOURCES, processes=11, sockets=400, memory_mb=4000)
    assert more.not_back(RESOURCES) == [
        "processes: 11 after 10", "sockets: 400 after 200", "memory_mb: 4000 after 3000",
    ]  # fmt: skip


def test_slope_has_an_interval() -> None:
    grows = slope([(x, 10.0 * x + 0.1 * (-1) ** x) for x in range(20)])
    assert grows is not None
    assert 9.9 < grows["low"] < grows["slope"] < grows["high"] < 10.1
    flat = slope([(x, (-1.0) ** x) for x in range(20)])
    assert flat is not None
    assert flat["low"] < 0 < flat["high"]
    assert slope([(1.0, 1.0), (2.0, 2.0)]) is None


def test_names_are_distinct() -> None:
    assert len(set(NAMES)) == len(ROWS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rows", "kill-all"], "invalid choice: 'kill-all'"),
        (["--times", "0"], "'0' is not a whole number from 1 on"),
        (["--hours", "0"], "--hours is 0, must be above 0"),
        (["--model", "large"], "invalid choice: 'large'"),
        (["--quick", "--publish"], "not allowed with argument --quick"),
    ],
)
def test_what_cannot_be_run_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        faults.main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def row(**changes: Any) -> dict[str, Any]:
    return {
        "what": "kill -9 of it", "model": "tiny", "times": 2, "passed": 2,
        "lost": 3, "requests": 1200,
        "recovery_s": {"median": 1.25, "max": 4.0}, "wrong": 0, "unaccounted": 0,
        "begun_streams": 20, "went_on": 19,
        "bystanders_p95": {"ratio": 1.5, "ratio_after": None}, "resources": {"not_back": []},
        **changes,
    }  # fmt: skip


def test_table_and_last_line() -> None:
    unseen = {"ratio": None, "ratio_after": None}
    bad = row(passed=1, recovery_s=None, unaccounted=1, begun_streams=0, bystanders_p95=unseen)
    rows = {"kill-decode": bad, "kill-prefill": row()}
    assert table(rows).splitlines()[2:] == [
        "| kill -9 of it | tiny | 2 of 2 | 1.2 s, 4.0 s | 3 of 1,200 | 0 | 0 | 19 of 20 | 1.5x |",
        "| kill -9 of it | tiny | 1 of 2 | - | 3 of 1,200 | 0 | 1 | - | - |",
    ]
    assert last_line(rows) == (
        "faults: 1/2 rows, 0 wrong tokens, 1 unaccounted, worst recovery 4.0 s"
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"resources": {"not_back": ["sockets: 3 after 1"]}}, "not back: sockets: 3 after 1"),
        ({"went_on": 18}, "only 18 of 20 streams went on"),
        (
            {"bystanders_p95": {"ratio": 9.0, "ratio_after": 1.25}},
            "p95 afterwards is 1.25x that before",
        ),
    ],
)
def test_a_row_that_passed_and_missed_a_bar(changes: dict[str, Any], told: str) -> None:
    missed = {"kill-decode": row(**changes)}
    assert f"| 2 of 2, {told} |" in table(missed)
    assert last_line(missed).startswith("faults: 0/1 rows")
    near = {"kill-decode": row(bystanders_p95={"ratio": 9.0, "ratio_after": 1.2})}
    assert table(near).endswith("| 9.0x, 1.2x after |")
    assert last_line(near).startswith("faults: 1/1 rows")


def test_rows_that_cannot_be_run_are_skipped_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    skipped = ["cut-link-5", "cut-link-60", "slow-link", "full-disk"]
    assert faults.main(["--quick", "--model", "tiny", "--rows", *skipped]) == 0
    told = capsys.readouterr().out
    for name in skipped:
        assert f"skipped {name}: " in told
    assert told.splitlines()[-1].startswith("faults: 0/0 rows")
    assert faults.main(["--model", "demo", "--rows", "other-model"]) == 0
    assert "skipped other-model: only models that were made for it" in capsys.readouterr().out


PUBLISHED = REFERENCE / "faults.json"


@pytest.mark.skipif(not PUBLISHED.exists(), reason="nothing was published yet")
def test_the_pages_figures_are_the_published_ones() -> None:
    rows = json.loads(PUBLISHED.read_text())
    assert table(rows) in (REPOSITORY / "docs" / "faults.md").read_text()


async def test_which_streams_a_worker_has_begun() -> None:
    async with running(decoders=("a", "b")) as setup, Client(setup.url, None) as client:
        system = object.__new__(System)
        system.url, system._http = setup.url, setup.http
        setup.decode("a").plan.step = asyncio.Semaphore(1)
        setup.decode("b").plan.step = asyncio.Semaphore(0)
        turns = [Turn(name, (1, 2, 3), (1, 2)) for name in ("a", "a", "b")]
        asks = [
            asyncio.create_task(client.ask(turn, "agent", stream=stream, rid=rid))
            for turn, stream, rid in zip(
                turns, (True, False, True), ("a stream", "a whole", "not begun"), strict=True
            )
        ]
        while not (begun := await system.begun_streams("a-0")):
            pass
        assert begun == {"a stream"}
        assert await system.begun_streams("b-0") == set()
        for task in asks:
            task.cancel()
