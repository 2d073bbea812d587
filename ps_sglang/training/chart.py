"""Lines over axes as SVG text, without any package: the figures of evaluations and benchmarks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

# Pixels.
_LEFT: Final = 70
_RIGHT: Final = 24
_TOP: Final = 40
_BOTTOM: Final = 60
_LEGEND_ROW: Final = 20
_LEGEND_COLUMN: Final = 200
_APART: Final = 4
# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES: Final = ("", "7 3", "2 3", "9 3 2 3")
_PARTS: Final = 4
_DECADES: Final = 2.2
"""A logarithmic axis that spans more is marked at powers of ten only."""


@dataclass(frozen=True)
class Point:
    """A value, with its interval if `low` and `high` are given; `note` shows under the pointer."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`; where they are not given, round numbers around the values.

    A linear axis begins at 0 then. `ticks`: the values that are marked.
    """

    label: str
    low: float | None = None
    high: float | None = None
    ticks: Sequence[float] | None = None
    log: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines, by name, over one pair of axes.

    A line of a single point is drawn `level`, from one x to another, if that is given.
    """

    title: str
    x: Axis
    y: Axis
    lines: Mapping[str, Sequence[Point]]
    level: tuple[float, float] | None = None


def chart(
    panels: Sequence[Panel], columns: int | None = None, size: tuple[int, int] = (320, 240)
) -> str:
    """Panels of `size` pixels, `columns` in a row (all, if not given), with one legend.

    A line looks the same in all panels, by its name. A value beyond an axis is drawn at its end.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    styles = {name: _style(index) for index, name in enumerate(names)}
    columns = columns or max(len(panels), 1)
    column, row = _LEFT + size[0] + _RIGHT, _TOP + size[1] + _BOTTOM
    width, rows = column * columns, -(-len(panels) // columns)
    legend_columns = max(1, (width - _LEFT) // _LEGEND_COLUMN)
    height = row * rows + _LEGEND_ROW * -(-len(names) // legend_columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif" '
        'font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for index, panel in enumerate(panels):
        left, top = index % columns * column + _LEFT, index // columns * row + _TOP
        parts.append(f'<g transform="translate({left} {top})">')
        parts += [*_panel(panel, styles, size), "</g>"]
    for index, (name, style) in enumerate(styles.items()):
        left = _LEFT + index % legend_columns * _LEGEND_COLUMN
        parts.append(_legend(name, style, left, row * rows + index // legend_columns * _LEGEND_ROW))
    return "\n".join([*parts, "</svg>"]) + "\n"


def nice(value: float) -> float:
    """The next 1, 2, 4, 5, 8 or 10 times a power of ten from `value` (above 0) on."""
    power = 10.0 ** math.floor(math.log10(value))
    step = next(step for step in (1, 2, 4, 5, 8, 10) if value <= step * power * (1 + 1e-9))
    return step * power


class _Scale:
    """Where an axis puts values, on `length` pixels."""

    def __init__(self, axis: Axis, values: Sequence[float], length: int) -> None:
        self._log, self._length = axis.log, length
        if axis.log:
            values = [value for value in values if value > 0] or [1.0]
            low = axis.low or _below(min(values))
            high = axis.high or nice(max(values))
            high = high if high > low else 10 * low
        else:
            low = axis.low or 0.0
            high = axis.high or nice(max([*values, 0.0]) or 1.0)
        self.low, self.high = low, high
        self.ticks = axis.ticks or _ticks(low, high, axis.log)

    def at(self, value: float) -> float:
        """Pixels from the low end, to a tenth."""
        value = min(max(value, self.low), self.high)
        if self._log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return round(part * self._length, 1)


def _below(value: float) -> float:
    """The next 1, 2 or 5 times a power of ten down to `value`."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step for step in (5, 2, 1) if value >= step * power * (1 - 1e-9)) * power


def _ticks(low: float, high: float, log: bool) -> list[float]:
    if not log:
        return [low + (high - low) * step / _PARTS for step in range(_PARTS + 1)]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if math.log10(high / low) <= _DECADES else (1,)
    marks = [step * 10.0**power for power in powers for step in steps]
    return [mark for mark in marks if low * (1 - 1e-9) <= mark <= high * (1 + 1e-9)]


def _style(index: int) -> str:
    colour, dash = _COLOURS[index % len(_COLOURS)], _DASHES[index % len(_DASHES)]
    return f'stroke="{colour}" fill="{colour}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _panel(panel: Panel, styles: Mapping[str, str], size: tuple[int, int]) -> Iterator[str]:
    points = [point for line in panel.lines.values() for point in line]
    across = _Scale(panel.x, [point.x for point in points], size[0])
    up = _Scale(
        panel.y,
        [y for point in points for y in (point.y, point.low, point.high) if y is not None],
        size[1],
    )
    yield from _axes(panel, across, up, size)
    bars = any(point.low is not None for point in points)
    for place, (name, line) in enumerate(panel.lines.items()):
        # Bars at one x stand beside each other.
        shift = _APART * (place - (len(panel.lines) - 1) / 2) if bars else 0.0
        where = [
            (round(across.at(point.x) + shift, 1), round(size[1] - up.at(point.y), 1), point)
            for point in sorted(line, key=lambda point: point.x)
        ]
        ends: Sequence[tuple[float, float]] = [(x, y) for x, y, _ in where]
        if len(where) == 1 and panel.level:
            ends = [(across.at(end), where[0][1]) for end in panel.level]
        path = " ".join(f"{x},{y}" for x, y in ends)
        solid = styles[name].partition(" stroke-dasharray")[0]
        yield f'<polyline points="{path}" {styles[name]} style="fill: none" stroke-width="1.8"/>'
        for x, y, point in where:
            if point.low is not None and point.high is not None:
                low, high = (round(size[1] - up.at(end), 1) for end in (point.low, point.high))
                yield (
                    f'<path d="M{x} {low}V{high}M{x - 3} {low}h6M{x - 3} {high}h6" {solid} '
                    'stroke-width="1.2"/>'
                )
            note = point.note or f"{name}: {point.x:g}, {point.y:.4g}"
            yield (
                f'<circle cx="{x}" cy="{y}" r="3" {solid}><title>{escape(note)}</title></circle>'
            )


def _axes(panel: Panel, across: _Scale, up: _Scale, size: tuple[int, int]) -> Iterator[str]:
    width, height = size
    yield (
        f'<text x="{width / 2}" y="-14" text-anchor="middle" font-size="15" '
        f'font-weight="bold">{escape(panel.title)}</text>'
    )
    for tick in up.ticks:
        y = round(height - up.at(tick), 1)
        yield (
            f'<line x1="0" x2="{width}" y1="{y}" y2="{y}" stroke="#dddddd"/>'
            f'<text x="-8" y="{y + 4}" text-anchor="end">{_number(tick)}</text>'
        )
    for tick in across.ticks:
        x = across.at(tick)
        yield (
            f'<line x1="{x}" x2="{x}" y1="{height}" y2="{height + 5}" stroke="black"/>'
            f'<text x="{x}" y="{height + 20}" text-anchor="middle">{_number(tick)}</text>'
        )
    yield f'<rect width="{width}" height="{height}" fill="none" stroke="black"/>'
    yield (
        f'<text x="{width / 2}" y="{height + 42}" text-anchor="middle">'
        f"{escape(panel.x.label)}</text>"
        f'<text transform="translate(-50 {height / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(panel.y.label)}</text>"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _legend(name: str, style: str, x: int, y: int) -> str:
    return (
        f'<line x1="{x}" x2="{x + 28}" y1="{y}" y2="{y}" {style} stroke-width="2"/>'
        f'<text x="{x + 36}" y="{y + 4}">{escape(name)}</text>'
    )
