"""The figure of a study: latency, throughput and hit ratio against the load."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ps_sglang.training.chart import Axis, Panel, Point

Row = Mapping[str, Any]
Value = Callable[[Row], float]

_LOADS: Final = {
    "rate": Axis("sessions that arrive a second"),
    "concurrent": Axis("concurrent sessions"),
}
_VALUES: Final[tuple[tuple[str, Axis, Value], ...]] = (
    ("Latency of a turn", Axis("p95 (s)"), lambda run: float(run["turn_s"]["p95"])),
    ("Throughput", Axis("output tokens/s"), lambda run: float(run["output_tokens_per_s"])),
    (
        "Prefix hit ratio",
        Axis("prompt tokens not prefilled (%)", high=100),
        lambda run: 100 * float(run["hit_ratio"]),
    ),
)


def panels(runs: Sequence[Row]) -> list[Panel]:
    """For each kind of load that was measured a row of panels, with a line a system.

    Points are medians over the repeats, their bars all of them.
    """
    panels = []
    for kind, load in _LOADS.items():
        rows = [run for run in runs if run["load"][kind] is not None and run["sessions"]]
        if rows:
            panels += [
                Panel(title, load, y, _lines(rows, kind, value)) for title, y, value in _VALUES
            ]
    return panels


def _lines(rows: Sequence[Row], kind: str, value: Value) -> dict[str, list[Point]]:
    groups: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        groups.setdefault(row["system"], {}).setdefault(row["load"][kind], []).append(value(row))
    return {
        system: [
            Point(load, statistics.median(values), min(values), max(values))
            for load, values in sorted(points.items())
        ]
        for system, points in groups.items()
    }
