"""What a study shows: how many times better than another system ours is."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.sessions.measures import sustained
from benchmarks.studies.agents.ideal import ideal_ratio
from benchmarks.studies.agents.systems import OURS, STOCK_PD

Row = Mapping[str, Any]


def headline(study: Mapping[str, Any], baseline: str = STOCK_PD) -> dict[str, float | None]:
    """Of a study (see `run_study`), by the medians of its repeats; None is what it cannot show.

    `throughput`: output tokens a second under the load that suits each best, if there is one with
    which the baseline does not keep up; `ideal_throughput` is the work ratio by `steps` with
    as many requests in a decode step as ours then had. `p95`: of a turn, at the highest `rate` that
    the baseline sustains. `idle_p50`: of a turn at the lowest rate. `prefilled`: prompt tokens
    prefilled for the same sessions; `ideal_prefilled` is what their workload allows. `hit`: ours'
    hit ratio under its worst load as part of what it allows.
    """
    ours = [run for run in study["runs"] if run["system"] == OURS]
    theirs = [run for run in study["runs"] if run["system"] == baseline]
    allowed = ours[0]["allowed"]
    hits = median_by_load(ours, lambda run: run["hit_ratio"])
    shown: dict[str, float | None] = {
        "throughput": None,
        "ideal_throughput": None,
        "prefilled": _total(theirs) / _total(ours),
        "ideal_prefilled": allowed["per_model_tokens"] / allowed["shared_tokens"],
        "hit": min(hits.values()) / allowed["shared_hit"],
        "rate": None,
        "p95": None,
        "idle_p50": None,
    }
    kept_up = sustained(theirs)
    if any(run["load"]["rate"] not in kept_up for run in theirs):
        shown["throughput"] = _best(ours)[1] / _best(theirs)[1]
    if "steps" in study and shown["throughput"] is not None:
        decoders = study["study"]["shape"]["decoders"]
        at_a_time = median_by_load(ours, lambda run: run["decoding"])[_best(ours)[0]]
        shown["ideal_throughput"] = ideal_ratio(study["work"], study["steps"], at_a_time / decoders)
    rates = [run["load"]["rate"] for run in theirs if run["load"]["rate"] is not None]
    if rates:
        shown["idle_p50"] = _turn(theirs, "p50", min(rates)) / _turn(ours, "p50", min(rates))
    if kept_up:
        at = kept_up[-1]
        shown |= {"rate": at, "p95": _turn(theirs, "p95", at) / _turn(ours, "p95", at)}
    return shown


def last_line(decoders: int, figures: Mapping[str, float | None]) -> str:
    """The line that a run ends with."""
    p95 = (
        "not compared (no rate sustained)"
        if figures["p95"] is None
        else f"{figures['p95']:.1f}x lower"
    )
    throughput = (
        "not compared (every rate sustained)"
        if figures["throughput"] is None
        else f"{figures['throughput']:.1f}x"
    )
    return (
        f"agents: N={decoders} throughput {throughput}, p95 {p95}, "
        f"prefill tokens {figures['prefilled']:.1f}x fewer than stock PD"
    )


def median_by_load(runs: Sequence[Row], value: Callable[[Row], float]) -> dict[str, float]:
    """A value's median over the repeats, by load."""
    groups: dict[str, list[float]] = {}
    for run in runs:
        groups.setdefault(str(run["load"]), []).append(value(run))
    return {load: statistics.median(values) for load, values in groups.items()}


def _best(runs: Sequence[Row]) -> tuple[str, float]:
    """The load under which most output came, and how much a second."""
    rates = median_by_load(runs, lambda run: run["output_tokens_per_s"])
    return max(rates.items(), key=lambda item: item[1])


def _total(runs: Sequence[Row]) -> float:
    return sum(median_by_load(runs, lambda run: run["prefilled_tokens"]).values())


def _turn(runs: Sequence[Row], percentile: str, rate: float) -> float:
    turns = [run["turn_s"][percentile] for run in runs if run["load"]["rate"] == rate]
    return float(statistics.median(turns))
