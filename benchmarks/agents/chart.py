"""Panels of lines as SVG text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

# Pixels.
_WIDTH: Final = 320
_HEIGHT: Final = 240
_LEFT: Final = 70
_RIGHT: Final = 24
_TOP: Final = 40
_BOTTOM: Final = 60
_LEGEND_ROW: Final = 20
# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES: Final = ("", "7 3", "2 3", "9 3 2 3")
_TICKS: Final = 4

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """Lines over one pair of axes; `top` is the highest value shown, else that of the lines."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Points]
    top: float | None = None


def chart(panels: Sequence[Panel]) -> str:
    """Panels side by side, with one legend for all.

    A line looks the same in all panels, by its name.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    styles = {name: _style(index) for index, name in enumerate(names)}
    column = _LEFT + _WIDTH + _RIGHT
    width = column * len(panels)
    height = _TOP + _HEIGHT + _BOTTOM + _LEGEND_ROW * len(names)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif" '
        'font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for index, panel in enumerate(panels):
        parts.append(f'<g transform="translate({index * column + _LEFT} {_TOP})">')
        parts += [*_panel(panel, styles), "</g>"]
    parts += _legend(styles)
    return "\n".join([*parts, "</svg>"]) + "\n"


def nice(value: float) -> float:
    """The next 1, 2, 4, 5, 8 or 10 times a power of ten from `value` (above 0) on."""
    power = 10.0 ** math.floor(math.log10(value))
    step = next(step for step in (1, 2, 4, 5, 8, 10) if value <= step * power * (1 + 1e-9))
    return step * power


def _style(index: int) -> str:
    colour, dash = _COLOURS[index % len(_COLOURS)], _DASHES[index % len(_DASHES)]
    return f'stroke="{colour}" fill="{colour}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _panel(panel: Panel, styles: Mapping[str, str]) -> Iterator[str]:
    points = [point for line in panel.lines.values() for point in line]
    right = nice(max((x for x, _ in points), default=1.0) or 1.0)
    top = panel.top or nice(max((y for _, y in points), default=1.0) or 1.0)
    yield from _axes(panel, right, top)
    for name, line in panel.lines.items():
        places = [
            (round(x / right * _WIDTH, 1), round((1 - min(y, top) / top) * _HEIGHT, 1), x, y)
            for x, y in sorted(line)
        ]
        path = " ".join(f"{left},{down}" for left, down, _, _ in places)
        solid = styles[name].partition(" stroke-dasharray")[0]
        yield f'<polyline points="{path}" {styles[name]} style="fill: none" stroke-width="1.8"/>'
        for left, down, x, y in places:
            yield (
                f'<circle cx="{left}" cy="{down}" r="3" {solid}>'
                f"<title>{escape(name)}: {x:g}, {y:.4g}</title></circle>"
            )


def _axes(panel: Panel, right: float, top: float) -> Iterator[str]:
    yield (
        f'<text x="{_WIDTH / 2}" y="-14" text-anchor="middle" font-size="15" '
        f'font-weight="bold">{escape(panel.title)}</text>'
    )
    for step in range(_TICKS + 1):
        part = step / _TICKS
        x, y = round(part * _WIDTH, 1), round((1 - part) * _HEIGHT, 1)
        yield (
            f'<line x1="0" x2="{_WIDTH}" y1="{y}" y2="{y}" stroke="#dddddd"/>'
            f'<text x="-8" y="{y + 4}" text-anchor="end">{part * top:.3g}</text>'
            f'<line x1="{x}" x2="{x}" y1="{_HEIGHT}" y2="{_HEIGHT + 5}" stroke="black"/>'
            f'<text x="{x}" y="{_HEIGHT + 20}" text-anchor="middle">{part * right:.3g}</text>'
        )
    yield f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="black"/>'
    yield (
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT + 42}" text-anchor="middle">'
        f"{escape(panel.x_label)}</text>"
        f'<text transform="translate(-50 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(panel.y_label)}</text>"
    )


def _legend(styles: Mapping[str, str]) -> Iterator[str]:
    for row, (name, style) in enumerate(styles.items()):
        y = _TOP + _HEIGHT + _BOTTOM + _LEGEND_ROW * row
        yield (
            f'<line x1="{_LEFT}" x2="{_LEFT + 28}" y1="{y}" y2="{y}" {style} stroke-width="2"/>'
            f'<text x="{_LEFT + 36}" y="{y + 4}">{escape(name)}</text>'
        )
