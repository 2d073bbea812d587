"""The figure of a study: latency, throughput and hit ratio against the load."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from benchmarks.agents.chart import Panel

Row = Mapping[str, Any]
Value = Callable[[Row], float]

_AXES: Final = {
    "rate": "sessions that arrive a second",
    "concurrent": "concurrent sessions",
}


def panels(runs: Sequence[Row]) -> list[Panel]:
    """For each kind of load that was measured: medians over the repeats, a line a system."""
    found = []
    for kind, x_label in _AXES.items():
        rows = [run for run in runs if run["load"][kind] is not None and run["sessions"]]
        if rows:
            found += [
                Panel(
                    "Latency of a turn",
                    x_label,
                    "p95 (s)",
                    _lines(rows, kind, lambda run: float(run["turn_s"]["p95"])),
                ),
                Panel(
                    "Throughput",
                    x_label,
                    "output tokens/s",
                    _lines(rows, kind, lambda run: float(run["output_tokens_per_s"])),
                ),
                Panel(
                    "Prefix hit ratio",
                    x_label,
                    "prompt tokens not prefilled (%)",
                    _lines(rows, kind, lambda run: 100 * float(run["hit_ratio"])),
                    top=100,
                ),
            ]
    return found


def _lines(rows: Sequence[Row], kind: str, value: Value) -> dict[str, list[tuple[float, float]]]:
    groups: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        groups.setdefault(row["system"], {}).setdefault(row["load"][kind], []).append(value(row))
    return {
        system: [(load, statistics.median(found)) for load, found in sorted(points.items())]
        for system, points in groups.items()
    }
