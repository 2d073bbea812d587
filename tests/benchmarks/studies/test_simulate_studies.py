"""The simulator's studies, headlines, figures and command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest

from benchmarks.report import save
from benchmarks.sessions.workload import Shape, sessions
from benchmarks.studies.simulate.__main__ import main
from benchmarks.studies.simulate.figure import draw
from benchmarks.studies.simulate.hardware import measured
from benchmarks.studies.simulate.headline import groups, headline, line
from benchmarks.studies.simulate.simulation import SYSTEMS, Cluster
from benchmarks.studies.simulate.studies import MEASURED, PAIR, STUDIES, Case, paper
from benchmarks.studies.simulate.traces import TEAM, interrupted, shuffled, teams
from ps_sglang.errors import UsageError
from tests.benchmarks.studies.step_costs import SMALL as STEPS


def test_measurements_are_read_and_refused(tmp_path: Path) -> None:
    path = tmp_path / "steps.json"
    path.write_bytes(msgspec.json.encode(STEPS))
    assert measured(path) == STEPS
    shared = msgspec.structs.replace(STEPS, cores=2, page=1)
    path.write_bytes(msgspec.json.encode(shared))
    assert measured(path) == shared
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"pool_tokens": 0}, "must be above 0"),
        ({"cores": 0}, "must be above 0"),
        ({"move_token": -1.0}, "move_token must not be below 0"),
        ({"cores": -2}, "cores must not be below 0"),
    )
    for changes, said in wrong:
        path.write_bytes(msgspec.json.encode(msgspec.structs.replace(STEPS, **changes)))
        with pytest.raises(UsageError, match=said):
            measured(path)
    for content in ("{", '{"pool_tokens": 1}', json.dumps(msgspec.to_builtins(STEPS) | {"x": 1})):
        path.write_text(content)
        with pytest.raises(UsageError, match="no measurements that can be used"):
            measured(path)
    with pytest.raises(UsageError, match="no measurements"):
        measured(tmp_path / "absent.json")


def test_teams_use_all_decoders_and_keep_the_work() -> None:
    trace = sessions(Shape(), 1.0, 16, 1)
    spread = teams(trace, 64)
    assert {turn.decoder for one in spread for turn in one.turns} == set(range(64))
    for before, after in zip(trace, spread, strict=True):
        assert len({turn.decoder for turn in after.turns}) == TEAM
        assert [(one.added, one.output) for one in after.turns] == [
            (one.added, one.output) for one in before.turns
        ]


def test_a_shuffled_trace_differs_in_its_decoders_only() -> None:
    trace = sessions(Shape(), 1.0, 50, 1)
    found = shuffled(trace, 4)
    assert found == shuffled(trace, 4)
    turns = [turn for one in found for turn in one.turns]
    shares = [sum(turn.decoder == name for turn in turns) / len(turns) for name in range(4)]
    assert shares == pytest.approx([0.25] * 4, abs=0.06)
    assert [replace(turn, decoder=0) for turn in turns] == [
        replace(turn, decoder=0) for one in trace for turn in one.turns
    ]


def test_interrupted_sessions_pause_once() -> None:
    trace = interrupted(10.0, 400, 60.0, 16)
    assert {len(one.turns) for one in trace} == {2}
    assert all(one.turns[0].pause == 0 for one in trace)
    pauses = [one.turns[1].pause for one in trace]
    assert sum(pauses) / len(pauses) == pytest.approx(60, rel=0.15)
    assert {one.turns[0].decoder for one in trace} == set(range(16))


def test_rates_are_parts_of_what_was_reached_at_most() -> None:
    asked: list[Case] = []

    def run(case: Case) -> dict[str, Any]:
        asked.append(case)
        best = {"shared": 600.0, "stock-pd": 200.0}[case.cluster.system]
        return {
            "output_tokens_per_s": best if case.most == 16 else 1.0,
            "output_tokens_per_session": 100.0,
        }

    paper(
        run, "llama-3.1-8b", "a100-80g", "react",
        systems=PAIR, concurrency=(8, 16), parts=((0.5, 1.1), (0.9,)),
    )  # fmt: skip
    closed = [case for case in asked if case.study == "concurrency"]
    assert [(one.cluster.system, one.most) for one in closed] == [
        ("shared", 8), ("shared", 16), ("stock-pd", 8), ("stock-pd", 16),
    ]  # fmt: skip
    rates = [case for case in asked if case.study == "rates"]
    assert [one.rate for one in rates] == [1.0, 1.0, 2.2, 2.2, 5.4, 5.4]


def row(system: str, p95: float, tokens: float, **load: float) -> dict[str, Any]:
    return {
        "study": "rates" if "rate" in load else "concurrency",
        "model": "m", "device": "d", "shape": {"kind": "react"}, "decoders": 4,
        "system": system, "rate": None, "most": None, **load,
        "turn_s": {"p50": p95 / 2, "p95": p95}, "ttft_s": {"p95": p95 / 3},
        "output_tokens_per_s": tokens, "output_tokens_per_session": 10.0,
        "session_s": {"p95": 20.0}, "drain_s": 40.0 if p95 < 10 else 41.0,
        "hit_ratio": 0.5, "computed_tokens": 100 if system == "shared" else 340,
    }  # fmt: skip


ROWS = [
    row("shared", 1.0, 10, rate=1), row("stock-pd", 1.1, 10, rate=1),
    row("shared", 2.0, 40, rate=4), row("stock-pd", 6.0, 38.5, rate=4),
    row("shared", 2.5, 60, rate=6), row("stock-pd", 50.0, 39, rate=6),
    row("shared", 9.0, 120, most=64), row("stock-pd", 9.0, 40, most=64),
]  # fmt: skip


def test_the_headline_compares_at_the_last_rate_that_stock_sustains() -> None:
    found = headline(ROWS)
    assert found == {
        "decoders": 4,
        "throughput": 3.0,
        "same_throughput": pytest.approx(60 / 39),
        "output_tokens_per_s": {"shared": 120, "stock-pd": 40},
        "rate": 4,
        "p95": 3.0,
        "idle_p50": pytest.approx(1.1),
        "prefilled": 3.4,
        "past": 6,
        "past_p95": 20.0,
    }
    assert line("react", found) == (
        "simulate: N=4 throughput 3.0x, p95 3.0x lower at 4 sessions/s, prefill tokens 3.4x "
        "fewer than stock PD (react)"
    )
    none = headline([one for one in ROWS if one["rate"] in (None, 6)])
    assert (none["rate"], none["p95"], none["past"]) == (None, None, 6)
    assert "not compared" in line("react", none)


def test_figures_have_a_line_for_each_system() -> None:
    for study, points in (("rates", 3), ("concurrency", 1)):
        picture = draw([*ROWS, {"study": "order"}], study)
        assert picture is not None
        root = ElementTree.fromstring(picture)
        lines = list(root.iter("{http://www.w3.org/2000/svg}polyline"))
        assert [len(one.attrib["points"].split()) for one in lines] == [points] * 6
    assert draw([{"study": "order"}], "rates") is None


@pytest.mark.parametrize("study", [name for name in STUDIES if name not in ("figures", "open")])
def test_every_study_is_of_clusters_and_traces_that_can_be(study: str) -> None:
    asked: list[Case] = []

    def run(case: Case) -> dict[str, Any]:
        asked.append(case)
        return {"output_tokens_per_s": 100.0, "output_tokens_per_session": 100.0}

    STUDIES[study](run, None)
    assert asked
    for case in asked:
        used = {turn.decoder for one in case.trace[:80] for turn in one.turns}
        assert used == set(range(case.cluster.decoders))
    # A case of the smallest kind runs.
    small = replace(asked[0], cluster=Cluster(asked[0].cluster.system, 4, 4), count=8, most=4)
    found = replace(small, rate=None, measured=STEPS).run()
    assert found["requests"] == sum(len(one.turns) for one in small.trace)
    json.dumps(found)


def test_the_command_saves_and_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.report.OUT", tmp_path)
    steps = tmp_path / "steps.json"
    monkeypatch.setattr(Case, "_count", 12)
    steps.write_bytes(msgspec.json.encode(STEPS))
    assert main(["--quick", "--measured", str(steps), "--out", "try"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("simulate: N=4 throughput ")
    assert last.endswith("than stock PD (react, measured, measured)")
    saved = json.loads((tmp_path / "try.json").read_text())
    assert {one["system"] for one in saved["runs"]} == {"shared", "stock-pd"} < set(SYSTEMS)
    (title,) = groups(saved["runs"])
    assert saved["headlines"] == {title: headline(saved["runs"])}
    ElementTree.fromstring((tmp_path / "try-rates.svg").read_text())
    # A study takes the place of itself, and others stay.
    assert main(["--study", "order", "--measured", str(steps), "--out", "try"]) == 0
    assert main(["--study", "order", "--measured", str(steps), "--out", "try"]) == 0
    parts = [one["part"] for one in json.loads((tmp_path / "try.json").read_text())["runs"]]
    assert (parts.count("quick"), parts.count("order")) == (len(saved["runs"]), 6)
    capsys.readouterr()
    assert main(["--study", "host", "--measured", str(steps)]) == 2
    assert "--study host is of modelled GPUs" in capsys.readouterr().err
    assert set(MEASURED) < set(STUDIES)


def test_the_reference_has_headlines_and_one_models_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.report.OUT", tmp_path / "out")
    monkeypatch.setattr("benchmarks.report.REFERENCE", tmp_path / "reference")
    assert main(["--publish"]) == 2
    assert "out/simulate.json is missing; this makes it: python -m" in capsys.readouterr().err
    shown = [{**one, "model": "llama-3.1-8b", "device": "a100-80g"} for one in ROWS]
    save("simulate", {"seed": 1, "headlines": {"a": 1}, "runs": [*ROWS, *shown]})
    assert main(["--publish"]) == 0
    published = {one.name: one.read_text() for one in (tmp_path / "reference").iterdir()}
    assert published.keys() == {
        "simulate.json", "simulate-rates.svg", "simulate-concurrency.svg",
    }  # fmt: skip
    summary = json.loads(published["simulate.json"])
    assert summary.keys() == {"environment", "seed", "headlines"}
    assert published["simulate-rates.svg"] == draw(shown, "rates")
