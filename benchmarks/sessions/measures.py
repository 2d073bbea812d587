"""What a run's times and counts come to."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.sessions.counters import Counts
from benchmarks.sessions.drive import Load, Run, TurnDone
from benchmarks.sessions.workload import Session, work


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Mean, p50, p95 and p99, interpolated; of no values, nothing."""
    if not values:
        return {}
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else []
    ranks = {"p50": 49, "p95": 94, "p99": 98}
    return {
        "mean": statistics.fmean(values),
        **{name: cuts[rank] if cuts else values[0] for name, rank in ranks.items()},
    }


def measures(trace: Sequence[Session], load: Load, run: Run, spent: Counts) -> dict[str, Any]:
    """Of one run. Seconds, tokens and bytes; a hit is a prompt token that nobody prefilled.

    `drain_s`: from the last arrival until all is done. `decoding`: turns between their first and
    last token at a time, in the mean. `allowed`: what the trace allows.
    """
    allowed = work(trace)
    prompt = sum(turn.prompt for turn in run.turns)
    output = sum(turn.output for turn in run.turns)
    done = len(run.sessions)
    prefilled = spent.counters["prefilled_tokens"]
    longer = [turn for turn in run.turns if turn.output > 1]
    return {
        "sessions": done,
        "turns": len(run.turns),
        "failures": run.failures,
        "seconds": run.seconds,
        "drain_s": run.seconds - (trace[-1].start if load.rate is not None else 0.0),
        "sessions_per_s": done / run.seconds,
        "output_tokens_per_s": output / run.seconds,
        "total_tokens_per_s": (prompt + output) / run.seconds,
        "turn_s": percentiles([turn.done - turn.asked for turn in run.turns]),
        "session_s": percentiles([end - start for start, end in run.sessions]),
        "first_token_s": percentiles([turn.first - turn.asked for turn in run.turns]),
        "between_tokens_s": percentiles(
            [(turn.done - turn.first) / (turn.output - 1) for turn in longer]
        ),
        "decoding": sum(turn.done - turn.first for turn in run.turns) / run.seconds,
        "stages_s": stages(run.turns),
        "prompt_tokens": prompt,
        "output_tokens": output,
        "hit_ratio": 1 - prefilled / prompt if prompt else 0.0,
        "allowed": {
            "shared_tokens": allowed.shared,
            "per_model_tokens": allowed.per_model,
            "shared_hit": allowed.shared_hit,
            "per_model_hit": allowed.per_model_hit,
        },
        **spent.counters,
        "cpu_s_per_session": {role: s / max(done, 1) for role, s in spent.cpu_s.items()},
    }


def stages(turns: Sequence[TurnDone]) -> dict[str, dict[str, float]]:
    """Where the turns' time went: mean and p95 of each stage, by the workers that told.

    `other` is what none of them saw: the gateway, HTTP, tokens to text, a client that waits for a
    core. Of a stage that a turn skipped the time is 0; of systems that tell nothing, nothing.
    """
    traced = [turn for turn in turns if turn.stages]
    rows = [
        {**turn.stages, "other": turn.done - turn.asked - sum(turn.stages.values())}
        for turn in traced
    ]
    by_stage = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        of_all = percentiles([row.get(name, 0.0) for row in rows])
        by_stage[name] = {"mean": of_all["mean"], "p95": of_all["p95"]}
    return by_stage


def sustained(runs: Sequence[dict[str, Any]]) -> list[float]:
    """Rates at which one system's queue did not grow, by its runs (`measures` and their `load`).

    Of a trace that ends, that is: after the last arrival it takes no more than twice the time of
    a session at the lowest rate to finish, in the median of the repeats.
    """
    drains: dict[float, list[float]] = {}
    sessions: dict[float, list[float]] = {}
    for run in runs:
        rate = run["load"]["rate"]
        if rate is not None:
            drains.setdefault(rate, []).append(run["drain_s"])
            sessions.setdefault(rate, []).append(run["session_s"]["p95"])
    if not drains:
        return []
    limit = 2 * statistics.median(sessions[min(sessions)])
    return sorted(rate for rate, seconds in drains.items() if statistics.median(seconds) <= limit)
