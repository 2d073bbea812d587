"""The paper's Figure 2 from rows of results: accuracy against share ratio, one panel a task.

    python -m ps_sglang.training.evaluate.figure results.json [more.json ...] --out figure.svg

A line a system through its mean over seeds, bars for the Wilson 95 % interval of that mean on the
items of one seed, which are the same for all seeds. A system with a score at one share only is
something to compare with: its line is level, across the panel.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ps_sglang.errors import PsSglangError, UsageError
from ps_sglang.progress import progress
from ps_sglang.training.chart import Axis, Panel, Point, chart
from ps_sglang.training.evaluate.results import check_writable
from ps_sglang.training.evaluate.scores import wilson

_PERCENT: Final = (0, 25, 50, 75, 100)
_ROW: Final = ("task", "system", "share", "seed", "n", "score")


@dataclass(frozen=True)
class FigureScore:
    """A system's mean score over its seeds at one share, with its interval."""

    share: float
    score: float
    low: float
    high: float


Lines = dict[str, dict[str, list[FigureScore]]]


def lines(rows: Sequence[Mapping[str, Any]]) -> Lines:
    """task -> system -> points by share. Raises UsageError for rows that are none."""
    groups: dict[tuple[str, str, float], dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        if missing := [key for key in _ROW if key not in row]:
            raise UsageError(f"a row without {', '.join(missing)}: {json.dumps(dict(row))[:80]}")
        if row.get("served"):
            continue
        groups.setdefault((row["task"], row["system"], row["share"]), {})[row["seed"]] = row
    by_task: Lines = {}
    for (task, system, _), seeds in sorted(groups.items(), key=lambda group: group[0][2]):
        by_task.setdefault(task, {}).setdefault(system, []).append(mean([*seeds.values()]))
    if not by_task:
        raise UsageError("no offline rows: there is nothing to draw")
    return by_task


def mean(seeds: Sequence[Mapping[str, Any]]) -> FigureScore:
    """Of a system's rows at one share, a row a seed."""
    score = sum(row["score"] for row in seeds) / len(seeds)
    return FigureScore(seeds[0]["share"], score, *wilson(score, min(row["n"] for row in seeds)))


def draw(rows: Sequence[Mapping[str, Any]]) -> str:
    """The figure as SVG text."""
    # A little room beside the first share and the last.
    x = Axis("prompt KV from the base (%)", -100 / 15, 100 + 100 / 15, ticks=_PERCENT)
    y = Axis("items passed (%)", 0, 100, ticks=_PERCENT)
    panels = [
        Panel(
            task,
            x,
            y,
            {
                system: [_drawn(system, score) for score in points[system]]
                for system in sorted(points)
            },
            level=(0, 100),
        )
        for task, points in lines(rows).items()
    ]
    return chart(panels, size=(340, 260))


def _drawn(system: str, score: FigureScore) -> Point:
    note = (
        f"{system}, share {score.share:g}: {score.score:.1%} ({score.low:.1%} to {score.high:.1%})"
    )
    return Point(100 * score.share, 100 * score.score, 100 * score.low, 100 * score.high, note)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 drawn, 2 refused."""
    parser = argparse.ArgumentParser(
        prog="python -m ps_sglang.training.evaluate.figure",
        description="Draw accuracy against share ratio from the rows of results.",
    )
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULTS.json")
    parser.add_argument("--out", type=Path, required=True, metavar="FIGURE.svg")
    args = parser.parse_args(argv)
    try:
        check_writable("--out", args.out)
        args.out.write_text(draw([row for file in args.results for row in _rows(file)]))
    except PsSglangError as error:
        progress(f"error: {error}")
        return 2
    return 0


def _rows(file: Path) -> list[Mapping[str, Any]]:
    try:
        rows: list[Mapping[str, Any]] = json.loads(file.read_text())["rows"]
        return rows
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} has no rows of results: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
