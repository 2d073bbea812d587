"""Lines of the paper's Figs. 3 and 4, as an SVG without any package."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import log2
from typing import Any, Final
from xml.sax.saxutils import escape

from benchmarks.simulate.simulation import SYSTEMS

# Pixels.
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 250, 170, 74, 44, 16, 56
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73")  # Okabe and Ito's
Run = Mapping[str, Any]
_RATES: Final[dict[str, Callable[[Run], float]]] = {
    "p95 of a turn (s)": lambda run: float(run["turn_s"]["p95"]),
    "output tokens/s": lambda run: float(run["output_tokens_per_s"]),
    "p95 TTFT (s)": lambda run: float(run["ttft_s"]["p95"]),
}
_PANELS: Final[dict[str, dict[str, Callable[[Run], float]]]] = {
    "rates": _RATES,
    "hardware": _RATES,
    "concurrency": {
        "hit ratio (%)": lambda run: 100 * float(run["hit_ratio"]),
        "output tokens/s": lambda run: float(run["output_tokens_per_s"]),
    },
}
_X: Final = {
    "rates": ("rate", "sessions a second"),
    "hardware": ("rate", "sessions a second"),
    "concurrency": ("most", "sessions at a time"),
}


def draw(runs: Sequence[Run], study: str) -> str | None:
    """A row for each model, device and workload; None if no run is of the study."""
    rows: dict[str, list[Run]] = {}
    for run in runs:
        if run["study"] == study:
            title = f"{run['shape']['kind']}, {run['model']}, {run['device']}"
            rows.setdefault(title, []).append(run)
    if not rows:
        return None
    panels = _PANELS[study]
    cell, tall = _LEFT + _WIDTH + _RIGHT, _TOP + _HEIGHT + _BOTTOM
    width, height = cell * len(panels), tall * len(rows) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="Helvetica, Arial, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for row, (title, group) in enumerate(rows.items()):
        for column, (name, value) in enumerate(panels.items()):
            left, top = column * cell + _LEFT, row * tall + _TOP
            parts.append(f'<g transform="translate({left} {top})">')
            parts += _panel(title, name, group, value, *_X[study])
            parts.append("</g>")
    for place, system in enumerate(SYSTEMS):
        x = _LEFT + 150 * place
        parts.append(
            f'<line x1="{x}" x2="{x + 28}" y1="{height - 14}" y2="{height - 14}" '
            f'stroke="{_COLOURS[place]}" stroke-width="2"/>'
            f'<text x="{x + 34}" y="{height - 10}">{system}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(
    title: str, name: str, group: Sequence[Run], value: Callable[[Run], float], key: str, x: str
) -> Iterator[str]:
    places = sorted({float(run[key]) for run in group})
    most = max(value(run) for run in group) or 1.0
    low, high = log2(places[0]), log2(places[-1])

    def at(run: Run) -> tuple[float, float]:
        across = (log2(run[key]) - low) / ((high - low) or 1.0)
        return round(10 + across * (_WIDTH - 20), 1), round(_HEIGHT * (1 - value(run) / most), 1)

    yield f'<text x="0" y="-22" font-weight="bold">{escape(title)}</text>'
    yield f'<text x="0" y="-7">{escape(name)}</text>'
    yield f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="black"/>'
    for part in (0.0, 0.5, 1.0):
        y = _HEIGHT * (1 - part)
        yield f'<text x="-6" y="{y + 4}" text-anchor="end">{most * part:.3g}</text>'
    for place in places:
        left, _ = at({**group[0], key: place})
        yield f'<text x="{left}" y="{_HEIGHT + 16}" text-anchor="middle">{place:g}</text>'
    yield f'<text x="{_WIDTH / 2}" y="{_HEIGHT + 34}" text-anchor="middle">{escape(x)}</text>'
    for system, colour in zip(SYSTEMS, _COLOURS, strict=True):
        own = sorted((run for run in group if run["system"] == system), key=lambda run: run[key])
        points = [at(run) for run in own]
        path = " ".join(f"{left},{top}" for left, top in points)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
        for left, top in points:
            yield f'<circle cx="{left}" cy="{top}" r="3" fill="{colour}"/>'
