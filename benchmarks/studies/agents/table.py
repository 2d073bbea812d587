"""The kept studies as tables in Markdown: what was won against each system, and where time went."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from benchmarks.studies.agents.headline import headline
from benchmarks.studies.agents.systems import OURS, STOCK_PD

HEAD: Final = (
    "study", "against", "throughput", "part of ideal work ratio", "p95 of a turn, lower",
    "p50 at the lowest rate, lower", "prefilled tokens, fewer", "part of ideal",
    "hit ratio, part of allowed",
)  # fmt: skip
_BARS: Final = ("*bar*", STOCK_PD, "", "0.9", "4.5x", "1x", "", "0.95", "0.95")


def table(kept: Mapping[str, Any]) -> str:
    """Of all studies of ours in which no session failed, by their names; see `record`."""
    studies = [
        (name, study)
        for name, study in kept.items()
        if OURS in study["study"]["systems"] and not any(run["failures"] for run in study["runs"])
    ]
    rows = [row for name, study in studies for row in comparisons(name, study)]
    times = [row for name, study in studies if (row := _times(name, study)) is not None]
    stages = list(dict.fromkeys(stage for _, _, stages_s in times for stage in stages_s))
    return "\n".join(
        (
            *markdown(HEAD, [_BARS, *rows]),
            "",
            f"Where a turn's time goes in {OURS}: mean milliseconds of each stage.",
            "",
            *markdown(
                ("study", "load", *stages),
                [
                    (name, load, *(_milliseconds(stages_s, stage) for stage in stages))
                    for name, load, stages_s in times
                ],
            ),
            "",
        )
    )


def comparisons(name: str, study: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """A row for each system that ours is compared with."""
    for baseline in study["study"]["systems"]:
        if baseline != OURS:
            shown = headline(study, baseline)
            at = f" at {shown['rate']:.2g}/s" if shown["rate"] is not None else ""
            yield (
                name,
                baseline,
                _times_of(shown["throughput"]),
                _part(shown["throughput"], shown["ideal_throughput"]),
                _times_of(shown["p95"]) + at,
                _times_of(shown["idle_p50"]),
                _times_of(shown["prefilled"]),
                _part(shown["prefilled"], shown["ideal_prefilled"]),
                f"{shown['hit']:.2f}",
            )


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table; of no rows, none."""
    if rows:
        for cells in (head, ["---"] * len(head), *rows):
            yield f"| {' | '.join(cells)} |"


def _times(name: str, study: Mapping[str, Any]) -> tuple[str, str, dict[str, float]] | None:
    """Medians over the repeats of the first load, under which most is to be seen."""
    runs = [run for run in study["runs"] if run["system"] == OURS and run["stages_s"]]
    if not runs:
        return None
    rate, concurrent = runs[0]["load"]["rate"], runs[0]["load"]["concurrent"]
    load = f"{rate:.2g} sessions/s" if rate else f"{concurrent or 'all'} sessions at a time"
    same = [run["stages_s"] for run in runs if run["load"] == runs[0]["load"]]
    stages = dict.fromkeys(stage for stage_s in same for stage in stage_s)
    return name, load, {
        stage: statistics.median(stage_s[stage]["mean"] for stage_s in same if stage in stage_s)
        for stage in stages
    }  # fmt: skip


def _times_of(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}x"


def _part(value: float | None, of: float | None) -> str:
    return "-" if value is None or of is None else f"{value / of:.2f} of {of:.2f}"


def _milliseconds(stages: Mapping[str, float], stage: str) -> str:
    return f"{stages[stage] * 1000:.0f}" if stage in stages else "-"
