"""The paper's Figs. 3 and 4 from simulated runs, a row of panels for each workload."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from benchmarks.studies.simulate.headline import groups
from benchmarks.studies.simulate.simulation import SYSTEMS
from ps_sglang.training.chart import Axis, Panel, Point, chart

Row = Mapping[str, Any]
Value = Callable[[Row], float]

_P95: Final = (Axis("p95 of a turn (s)", log=True), lambda run: run["turn_s"]["p95"])
_TTFT: Final = (Axis("p95 of the first token (s)", log=True), lambda run: run["ttft_s"]["p95"])
_OUTPUT: Final = (Axis("output tokens/s"), lambda run: run["output_tokens_per_s"])
_HITS: Final = (Axis("prefix hit ratio (%)", high=100), lambda run: 100 * run["hit_ratio"])
_PANELS: Final[dict[str, tuple[tuple[Axis, Value], ...]]] = {
    "rates": (_P95, _TTFT, _OUTPUT),
    "concurrency": (_HITS, _OUTPUT, _P95),
}
_LOADS: Final = {
    "rates": ("rate", Axis("sessions that arrive a second")),
    "concurrency": ("most", Axis("concurrent sessions", log=True)),
}


def shown(runs: Sequence[Row]) -> list[Row]:
    """The runs whose figures the page has: of one model and device, as the others look alike."""
    return [run for run in runs if (run["model"], run["device"]) == ("llama-3.1-8b", "a100-80g")]


def draw(runs: Sequence[Row], study: str) -> str | None:
    """A row of panels for each workload, model and device; None if no run is of the study."""
    key, load = _LOADS[study]
    panels = []
    for title, group in groups(runs).items():
        rows = [run for run in group if run["study"] == study]
        if rows:
            panels += [
                Panel(title, load, axis, _lines(rows, key, value)) for axis, value in _PANELS[study]
            ]
    return chart(panels, columns=len(_PANELS[study])) if panels else None


def _lines(rows: Sequence[Row], key: str, value: Value) -> dict[str, list[Point]]:
    return {
        system: [Point(run[key], value(run)) for run in rows if run["system"] == system]
        for system in SYSTEMS
        if any(run["system"] == system for run in rows)
    }
