"""Figure 2 from rows: what is drawn, and where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ps_sglang.errors import UsageError
from ps_sglang.training.evaluate.figure import draw, lines, main
from ps_sglang.training.evaluate.scores import wilson

SVG = "{http://www.w3.org/2000/svg}"


def row(system: str, share: float, score: float, **changes: Any) -> dict[str, Any]:
    common = {"task": "code", "system": system, "share": share, "seed": 0, "n": 200, "score": score}
    return common | changes


ROWS = [
    row("naive-share", 1.0, 0.2),
    row("naive-share", 0.0, 0.9),
    row("naive-share", 0.5, 0.6),
    row("cache-conditioned", 0.0, 0.9),
    row("cache-conditioned", 1.0, 0.8, seed=0),
    row("cache-conditioned", 1.0, 0.9, seed=1),
    row("full <ft>", 0.0, 0.95, task="math"),
]


def test_seeds_are_averaged_over_the_same_items() -> None:
    points = lines(ROWS)["code"]["cache-conditioned"]
    assert [point.share for point in points] == [0.0, 1.0]
    assert points[1].score == pytest.approx(0.85)
    assert (points[1].low, points[1].high) == wilson(points[1].score, 200)


def test_every_point_is_drawn_where_its_score_is() -> None:
    figure = ElementTree.fromstring(draw(ROWS))
    code, math = (group for group in figure.iter(f"{SVG}g"))
    # Systems by name: cache-conditioned, then naive-share.
    first, second = code.iter(f"{SVG}polyline")
    heights = [float(point.split(",")[1]) for point in second.attrib["points"].split()]
    columns = [float(point.split(",")[0]) for point in second.attrib["points"].split()]
    # From the bottom of a panel 260 pixels high.
    assert [1 - height / 260 for height in heights] == pytest.approx([0.9, 0.6, 0.2], abs=1e-3)
    assert columns[1] - columns[0] == columns[2] - columns[1] > 0
    assert len(first.attrib["points"].split()) == 2
    titles = [title.text for title in figure.iter(f"{SVG}title")]
    low, high = wilson(0.95, 200)
    assert f"full <ft>, share 0: 95.0% ({low:.1%} to {high:.1%})" in titles
    assert len(titles) == len(list(figure.iter(f"{SVG}circle"))) == 6
    (alone,) = math.iter(f"{SVG}polyline")
    assert len(list(math.iter(f"{SVG}circle"))) == 1
    # Level, from the left end to the right.
    assert alone.attrib["points"] == "20.0,13.0 320.0,13.0"


def test_systems_are_told_apart_and_named() -> None:
    figure = ElementTree.fromstring(draw(ROWS))
    words = {text.text for text in figure.iter(f"{SVG}text")}
    assert {"cache-conditioned", "naive-share", "full <ft>", "code", "math"} <= words
    assert {"prompt KV from the base (%)", "items passed (%)", "0", "25", "100"} <= words
    strokes = {line.attrib["stroke"] for line in figure.iter(f"{SVG}polyline")}
    assert len(strokes) == 3


def test_served_rows_are_not_drawn() -> None:
    assert "code" in lines(ROWS)
    assert lines([*ROWS, row("other", 1.0, 0.1, served=True)]) == lines(ROWS)
    with pytest.raises(UsageError, match="no offline rows"):
        lines([row("other", 1.0, 0.1, served=True)])


def test_the_command_draws_several_files_as_one(tmp_path: Path) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, rows in zip(files, (ROWS[:3], ROWS[3:]), strict=True):
        file.write_text(json.dumps({"rows": rows}))
    out = tmp_path / "figure.svg"
    assert main([*map(str, files), "--out", str(out)]) == 0
    assert out.read_text() == draw(ROWS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "has no rows of results"),
        ("no json", "has no rows of results"),
        ('{"rows": [{"task": "code"}]}', "a row without system, share, seed, n, score"),
    ],
)
def test_a_file_without_rows(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.json"
    file.write_text(content)
    assert main([str(file), "--out", str(tmp_path / "figure.svg")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "figure.svg").exists()
