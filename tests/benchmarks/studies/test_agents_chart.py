"""The agents benchmark's figures and kept results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.studies.agents import record
from benchmarks.studies.agents.__main__ import main
from benchmarks.studies.agents.panels import panels
from benchmarks.studies.agents.record import keep
from ps_sglang.training.chart import Point


def run(system: str, hit: float, **load: float) -> dict[str, Any]:
    return {
        "system": system,
        "load": {"rate": None, "concurrent": None, **load},
        "sessions": 1,
        "turn_s": {"p50": 1.0, "p95": 2.0},
        "session_s": {"p95": 2.0},
        "drain_s": 1.0,
        "decoding": 1.0,
        "stages_s": {},
        "failures": [],
        "prefilled_tokens": 300,
        "allowed": {"per_model_tokens": 400, "shared_tokens": 100, "shared_hit": 0.8},
        "output_tokens_per_s": 5.0,
        "hit_ratio": hit,
    }


def test_panels_show_medians_for_each_kind_of_load() -> None:
    rows = [run("a", hit, rate=0.5) for hit in (0.1, 0.5, 0.6)] + [run("a", 0.7, concurrent=4)]
    by_rate, _, hits, *by_concurrency = panels(rows)
    assert by_rate.lines == {"a": [Point(0.5, 2.0, 2.0, 2.0)]}
    assert hits.lines == {"a": [Point(0.5, 50.0, 10.0, 60.0)]}
    assert [panel.x.label for panel in by_concurrency] == ["concurrent sessions"] * 3


def found(decoders: int, hit: float, systems: tuple[str, ...] = ("a",)) -> dict[str, Any]:
    shape = {"kind": "react", "decoders": decoders}
    study = {"shape": shape, "model": "tiny", "concurrency": [], "systems": systems}
    return {"study": study, "runs": [run(name, hit, rate=1.0) for name in systems]}


def test_a_study_replaces_the_one_of_its_name(tmp_path: Path) -> None:
    for study in (found(2, 0.1), found(3, 0.2), found(2, 0.3)):
        keep(tmp_path, study)
    keep(tmp_path, found(2, 0.4), "long")
    kept = json.loads((tmp_path / "agents.json").read_text())
    assert {name: one["runs"][0]["hit_ratio"] for name, one in kept["studies"].items()} == {
        "react-tiny-n2": 0.3,
        "react-tiny-n3": 0.2,
        "react-tiny-n2-long": 0.4,
    }
    assert kept["studies"]["react-tiny-n2"]["environment"]["cores"] > 0
    assert {one.name for one in tmp_path.iterdir()} == {
        "agents.json",
        "agents.md",
        *(f"agents-{name}.svg" for name in kept["studies"]),
    }


def test_a_report_is_drawn_again_from_what_is_kept(tmp_path: Path) -> None:
    keep(tmp_path, found(2, 0.1))
    drawing = tmp_path / "agents-react-tiny-n2.svg"
    before = drawing.read_text()
    ElementTree.fromstring(before)
    drawing.unlink()
    assert main(["--report", "--results", str(tmp_path)]) == 0
    assert drawing.read_text() == before


def test_a_report_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--report", "--results", str(tmp_path)]) == 2
    assert "no study is kept" in capsys.readouterr().err


def test_the_reference_has_the_table_and_the_figures_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(record, "REFERENCE", reference := tmp_path / "reference")
    monkeypatch.setattr(record, "SHOWN", ("react-tiny-n2",))
    keep(tmp_path, found(3, 0.1))
    assert main(["--publish", "--results", str(tmp_path)]) == 2
    assert "lacks the study react-tiny-n2" in capsys.readouterr().err
    assert not reference.exists()
    keep(tmp_path, found(2, 0.1))
    assert main(["--publish", "--results", str(tmp_path)]) == 0
    published = {one.name: one.read_text() for one in reference.iterdir()}
    assert published.keys() == {"agents.md", "agents-react-tiny-n2.svg"}
    assert all((tmp_path / name).read_text() == text for name, text in published.items())


def test_the_table_says_what_was_won_and_where_time_went(tmp_path: Path) -> None:
    study = found(2, 0.5, ("stock_pd", "ps_sglang"))
    theirs, ours = study["runs"]
    ours |= {"output_tokens_per_s": 15.0, "prefilled_tokens": 100}
    ours["stages_s"] = {"prefill": {"mean": 0.25, "p95": 1.0}}
    at_once = {"rate": None, "concurrent": None}
    study["runs"] += [{**one, "load": at_once} for one in (theirs, ours)]
    study["work"] = {
        "shared": {"passes": 1, "tokens": 10, "pairs": 0},
        "per_model": {"passes": 1, "tokens": 40, "pairs": 0},
        "decode": {"tokens": 0, "context": 0},
    }
    steps = {
        "pool_tokens": 1, "prefill_step": 0.0, "prefill_token": 1.0, "decode_step": 0.0,
        "decode_request": 0.0, "move_fixed": 0.0, "move_token": 0.0, "prefill_cores": 2.0,
    }  # fmt: skip
    keep(tmp_path, study)
    assert "| 3.0x | - |" in (tmp_path / "agents.md").read_text()
    study["steps"] = {"measured": steps}
    keep(tmp_path, study)
    lines = (tmp_path / "agents.md").read_text().splitlines()
    assert lines[3] == (
        "| react-tiny-n2 | stock_pd | 3.0x | 0.75 of 4.00 | 1.0x at 1/s | 1.0x | 3.0x "
        "| 0.75 of 4.00 | 0.62 |"
    )
    assert lines[-2:] == ["| --- | --- | --- |", "| react-tiny-n2 | 1 sessions/s | 250 |"]
    theirs["failures"] = ["session 0: broken"]
    keep(tmp_path, study)
    assert "react-tiny-n2" not in (tmp_path / "agents.md").read_text()
