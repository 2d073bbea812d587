"""The paper's Figure 2 from rows of results: accuracy against share ratio, one panel a task.

    python -m ps_sglang.evaluate.figure results.json [more.json ...] --out figure.svg

An SVG without any package: a line a system through its mean over seeds, bars for the Wilson 95 %
interval of that mean on the items of one seed, which are the same for all seeds. A system with a
score at one share only is something to compare with: its line is level, across the panel.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

from ps_sglang.errors import PsSglangError, UsageError
from ps_sglang.evaluate.results import check_writable
from ps_sglang.evaluate.scores import wilson

# Pixels.
_WIDTH, _HEIGHT = 340, 260
_LEFT, _TOP, _BOTTOM, _GAP = 62, 40, 96, 26
_LEGEND_ROW: Final = 18
# Okabe and Ito's colours, which colour-blind readers can tell apart, by system; others follow.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES: Final = ("", "7 3", "2 3", "9 3 2 3")
_ROW: Final = ("task", "system", "share", "seed", "n", "score")


@dataclass(frozen=True)
class Point:
    """A system's mean score over its seeds at one share, with its interval."""

    share: float
    score: float
    low: float
    high: float


Lines = dict[str, dict[str, list[Point]]]


def lines(rows: Sequence[Mapping[str, Any]]) -> Lines:
    """task -> system -> points by share. Raises UsageError for rows that are none."""
    groups: dict[tuple[str, str, float], dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        if missing := [key for key in _ROW if key not in row]:
            raise UsageError(f"a row without {', '.join(missing)}: {json.dumps(dict(row))[:80]}")
        if row.get("served"):
            continue
        groups.setdefault((row["task"], row["system"], row["share"]), {})[row["seed"]] = row
    found: Lines = {}
    for (task, system, share), seeds in sorted(groups.items(), key=lambda group: group[0][2]):
        score = sum(row["score"] for row in seeds.values()) / len(seeds)
        low, high = wilson(score, min(row["n"] for row in seeds.values()))
        point = Point(share, score, low, high)
        found.setdefault(task, {}).setdefault(system, []).append(point)
    if not found:
        raise UsageError("no offline rows: there is nothing to draw")
    return found


def draw(rows: Sequence[Mapping[str, Any]]) -> str:
    """The figure as SVG text."""
    tasks = lines(rows)
    systems = sorted({system for one in tasks.values() for system in one})
    styles = {system: _style(index) for index, system in enumerate(systems)}
    width = len(tasks) * (_WIDTH + _GAP + _LEFT)
    height = _TOP + _HEIGHT + _BOTTOM + _LEGEND_ROW * ((len(systems) + 1) // 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif" '
        'font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for index, (task, points) in enumerate(tasks.items()):
        left = index * (_WIDTH + _GAP + _LEFT) + _LEFT
        parts.append(f'<g transform="translate({left} {_TOP})">')
        parts += _axes(task)
        for place, system in enumerate(sorted(points)):
            # Bars of several systems at one share stand beside each other.
            shift = 4 * (place - (len(points) - 1) / 2)
            parts += _line(system, points[system], styles[system], shift)
        parts.append("</g>")
    parts += _legend(styles)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _style(index: int) -> str:
    dash = _DASHES[index % len(_DASHES)]
    colour = _COLOURS[index % len(_COLOURS)]
    return f'stroke="{colour}" fill="{colour}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _x(share: float) -> float:
    return round(20 + share * (_WIDTH - 40), 1)


def _y(score: float) -> float:
    return round((1 - score) * _HEIGHT, 1)


def _axes(task: str) -> Iterator[str]:
    yield (
        f'<text x="{_WIDTH / 2}" y="-14" text-anchor="middle" font-size="15" '
        f'font-weight="bold">{escape(task)}</text>'
    )
    for step in range(5):
        part = step / 4
        yield (
            f'<line x1="0" x2="{_WIDTH}" y1="{_y(part)}" y2="{_y(part)}" stroke="#dddddd"/>'
            f'<text x="-8" y="{_y(part) + 4}" text-anchor="end">{100 * part:.0f}</text>'
        )
        yield (
            f'<line x1="{_x(part)}" x2="{_x(part)}" y1="{_HEIGHT}" y2="{_HEIGHT + 5}" '
            f'stroke="black"/>'
            f'<text x="{_x(part)}" y="{_HEIGHT + 20}" text-anchor="middle">{100 * part:.0f}</text>'
        )
    yield f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="black"/>'
    yield (
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT + 42}" text-anchor="middle">'
        "prompt KV from the base (%)</text>"
        f'<text transform="translate(-40 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
        "items passed (%)</text>"
    )


def _line(system: str, points: Sequence[Point], style: str, shift: float) -> Iterator[str]:
    name = escape(system)
    solid = style.partition(" stroke-dasharray")[0]
    where = [(round(_x(point.share) + shift, 1), point) for point in points]
    across = [(_x(share), points[0]) for share in (0.0, 1.0)] if len(points) == 1 else where
    path = " ".join(f"{x},{_y(point.score)}" for x, point in across)
    yield f'<polyline points="{path}" {style} style="fill: none" stroke-width="1.8"/>'
    for x, point in where:
        low, high = _y(point.low), _y(point.high)
        yield (
            f'<path d="M{x} {low}V{high}M{x - 3} {low}h6M{x - 3} {high}h6" {solid} '
            f'stroke-width="1.2"/><circle cx="{x}" cy="{_y(point.score)}" r="3.5" {solid}>'
            f"<title>{name}, share {point.share:g}: {point.score:.1%} "
            f"({point.low:.1%} to {point.high:.1%})</title></circle>"
        )


def _legend(styles: Mapping[str, str]) -> Iterator[str]:
    """Two columns under the first panel."""
    for index, (system, style) in enumerate(styles.items()):
        x = _LEFT + (index % 2) * (_WIDTH // 2)
        y = _TOP + _HEIGHT + 68 + _LEGEND_ROW * (index // 2)
        yield (
            f'<line x1="{x}" x2="{x + 28}" y1="{y}" y2="{y}" {style} stroke-width="2"/>'
            f'<text x="{x + 34}" y="{y + 4}">{escape(system)}</text>'
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 drawn, 2 refused."""
    parser = argparse.ArgumentParser(
        prog="python -m ps_sglang.evaluate.figure",
        description="Draw accuracy against share ratio from the rows of results.",
    )
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULTS.json")
    parser.add_argument("--out", type=Path, required=True, metavar="FIGURE.svg")
    args = parser.parse_args(argv)
    try:
        check_writable("--out", args.out)
        args.out.write_text(draw([row for file in args.results for row in _rows(file)]))
    except PsSglangError as error:
        print(f"ps-sglang: error: {error}", file=sys.stderr)
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
