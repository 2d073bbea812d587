"""What a study shows, in one line: ours beside stock prefill/decode disaggregation."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.agents.measures import sustained
from benchmarks.agents.systems import OURS, STOCK_PD

Row = dict[str, Any]


def headline(runs: Sequence[Row], baseline: str = STOCK_PD) -> dict[str, float | None]:
    """How many times better than `baseline` ours is, by the medians of the repeats.

    `throughput`: output tokens a second under the load that suits each best. `p95`: of a turn, at
    the highest `rate` that the baseline sustains (None if it sustains none of them). `idle_p50`:
    of a turn at the lowest rate. `prefilled`: prompt tokens prefilled for the same sessions;
    `ideal_prefilled` is what their workload allows.
    """
    ours = [run for run in runs if run["system"] == OURS]
    theirs = [run for run in runs if run["system"] == baseline]
    allowed = ours[0]["allowed"]
    found: dict[str, float | None] = {
        "throughput": _best(ours) / _best(theirs),
        "prefilled": _total(theirs) / _total(ours),
        "ideal_prefilled": allowed["per_model_tokens"] / allowed["shared_tokens"],
        "rate": None,
        "p95": None,
        "idle_p50": None,
    }
    rates = [run["load"]["rate"] for run in theirs if run["load"]["rate"] is not None]
    if rates:
        found["idle_p50"] = _turn(theirs, "p50", min(rates)) / _turn(ours, "p50", min(rates))
    if kept_up := sustained(theirs):
        at = kept_up[-1]
        found |= {"rate": at, "p95": _turn(theirs, "p95", at) / _turn(ours, "p95", at)}
    return found


def last_line(decoders: int, found: dict[str, float | None]) -> str:
    """The line that a run ends with."""
    p95 = (
        "not compared (no rate sustained)" if found["p95"] is None else f"{found['p95']:.1f}x lower"
    )
    return (
        f"agents: N={decoders} throughput {found['throughput']:.1f}x, p95 {p95}, "
        f"prefill tokens {found['prefilled']:.1f}x fewer than stock PD"
    )


def median_by_load(runs: Sequence[Row], value: Callable[[Row], float]) -> dict[str, float]:
    """A value's median over the repeats, by load."""
    groups: dict[str, list[float]] = {}
    for run in runs:
        groups.setdefault(str(run["load"]), []).append(value(run))
    return {load: statistics.median(found) for load, found in groups.items()}


def _best(runs: Sequence[Row]) -> float:
    return max(median_by_load(runs, lambda run: run["output_tokens_per_s"]).values())


def _total(runs: Sequence[Row]) -> float:
    return sum(median_by_load(runs, lambda run: run["prefilled_tokens"]).values())


def _turn(runs: Sequence[Row], percentile: str, rate: float) -> float:
    found = [run["turn_s"][percentile] for run in runs if run["load"]["rate"] == rate]
    return float(statistics.median(found))
