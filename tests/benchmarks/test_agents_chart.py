"""The agents benchmark's figures and kept results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.agents.chart import Panel, chart, nice
from benchmarks.agents.panels import panels
from benchmarks.agents.record import keep

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("value", "expected"), [(0.031, 0.04), (1, 1), (1.1, 2), (7, 8), (9, 10), (300, 400)]
)
def test_axes_end_at_round_numbers(value: float, expected: float) -> None:
    assert nice(value) == pytest.approx(expected)


def test_points_lie_where_their_values_are() -> None:
    panel = Panel("A & B", "x", "y", {"one": [(4, 100), (0, 0), (2, 25)], "two": []}, top=100)
    root = ElementTree.fromstring(chart([panel]))
    dots = [
        (float(dot.get("cx", "")), float(dot.get("cy", ""))) for dot in root.iter(f"{SVG}circle")
    ]
    assert dots == [(0, 240), (160, 180), (320, 0)]
    assert [line.get("points") for line in root.iter(f"{SVG}polyline")] == [
        "0.0,240.0 160.0,180.0 320.0,0.0",
        "",
    ]
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert texts[0] == "A & B"
    assert texts[-2:] == ["one", "two"]


def run(system: str, hit: float, **load: float) -> dict[str, Any]:
    return {
        "system": system,
        "load": {"rate": None, "concurrent": None, **load},
        "sessions": 1,
        "turn_s": {"p95": 2.0},
        "output_tokens_per_s": 5.0,
        "hit_ratio": hit,
    }


def test_panels_show_medians_for_each_kind_of_load() -> None:
    rows = [run("a", hit, rate=0.5) for hit in (0.1, 0.5, 0.6)] + [run("a", 0.7, concurrent=4)]
    by_rate, _, hits, *by_concurrency = panels(rows)
    assert by_rate.lines == {"a": [(0.5, 2.0)]}
    assert hits.lines == {"a": [(0.5, 50.0)]}
    assert [panel.x_label for panel in by_concurrency] == ["concurrent sessions"] * 3


def test_a_study_replaces_the_one_of_its_name(tmp_path: Path) -> None:
    def found(decoders: int, hit: float) -> dict[str, Any]:
        shape = {"kind": "react", "decoders": decoders}
        study = {"shape": shape, "model": "tiny", "concurrency": []}
        return {"study": study, "runs": [run("a", hit, rate=1.0)]}

    for study in (found(2, 0.1), found(3, 0.2), found(2, 0.3)):
        path, drawing = keep(study, tmp_path)
    studies = json.loads(path.read_text())["studies"]
    assert {name: one["runs"][0]["hit_ratio"] for name, one in studies.items()} == {
        "react-tiny-n2": 0.3,
        "react-tiny-n3": 0.2,
    }
    assert studies["react-tiny-n2"]["environment"]["cores"] > 0
    assert drawing.name == "agents-react-tiny-n2.svg"
    ElementTree.fromstring(drawing.read_text())
