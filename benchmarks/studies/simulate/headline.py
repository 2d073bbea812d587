"""What a workload's runs come to: a shared prefill beside stock PD, and beside the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

Row = Mapping[str, Any]

_KEY: Final = ("model", "device")


def groups(runs: Sequence[Row]) -> dict[str, list[Row]]:
    """The runs of Figs. 3 and 4, by workload, model and device."""
    by_title: dict[str, list[Row]] = {}
    for run in runs:
        if run["study"] in ("rates", "concurrency"):
            title = ", ".join((run["shape"]["kind"], *(run[key] for key in _KEY)))
            by_title.setdefault(title, []).append(run)
    return by_title


def headline(runs: Sequence[Row]) -> dict[str, Any]:
    """How many times better a shared prefill is, of one group.

    `throughput`: output tokens a second, each at the load that suits it best. `same_throughput`:
    both at one arrival rate, that at which they differ most. `rate`: the highest one that stock PD
    sustains; `p95` of a turn, `idle_p50` (at the lowest rate) and `prefilled` tokens are compared
    there. `past`: the first rate that it does not sustain, with its `past_p95`.
    """
    by_rate = {
        system: {run["rate"]: run for run in runs if run["system"] == system and run["rate"]}
        for system in ("shared", "stock-pd")
    }
    ours, stock = by_rate["shared"], by_rate["stock-pd"]
    best = [
        max(run["output_tokens_per_s"] for run in runs if run["system"] == system)
        for system in by_rate
    ]
    kept = sustained(list(stock.values()))
    lost = [rate for rate in sorted(stock) if not kept or rate > kept[-1]]
    figures: dict[str, Any] = {
        "decoders": runs[0]["decoders"],
        "throughput": best[0] / best[1],
        "same_throughput": max(
            ours[rate]["output_tokens_per_s"] / stock[rate]["output_tokens_per_s"] for rate in stock
        ),
        "output_tokens_per_s": {"shared": best[0], "stock-pd": best[1]},
        "rate": kept[-1] if kept else None,
        "p95": None,
        "idle_p50": None,
        "prefilled": None,
        "past": lost[0] if lost else None,
        "past_p95": None,
    }
    if kept:
        figures["p95"] = _ratio(stock[kept[-1]], ours[kept[-1]], "p95")
        figures["idle_p50"] = _ratio(stock[kept[0]], ours[kept[0]], "p50")
        figures["prefilled"] = (
            stock[kept[-1]]["computed_tokens"] / ours[kept[-1]]["computed_tokens"]
        )
    if lost:
        figures["past_p95"] = _ratio(stock[lost[0]], ours[lost[0]], "p95")
    return figures


def sustained(runs: Sequence[Row]) -> list[float]:
    """Rates up to which one system's queue does not grow, as benchmarks.studies.agents has it.

    That is: after the last arrival it takes no more than twice the time of a session at the lowest
    rate (its p95) until all is done.
    """
    limit = 2 * min(runs, key=lambda run: float(run["rate"]))["session_s"]["p95"]
    kept = []
    for run in sorted(runs, key=lambda run: float(run["rate"])):
        if run["drain_s"] > limit:
            break
        kept.append(run["rate"])
    return kept


def _ratio(theirs: Row, ours: Row, percentile: str) -> float:
    return float(theirs["turn_s"][percentile] / ours["turn_s"][percentile])


def line(title: str, figures: Mapping[str, Any]) -> str:
    """For people; the same words as the agents benchmark's last line."""
    p95 = "not compared (no rate sustained)"
    if figures["p95"] is not None:
        p95 = f"{figures['p95']:.1f}x lower at {figures['rate']:.3g} sessions/s"
    fewer = "" if figures["prefilled"] is None else f"{figures['prefilled']:.1f}x fewer "
    return (
        f"simulate: N={figures['decoders']} throughput {figures['throughput']:.1f}x, p95 {p95}, "
        f"prefill tokens {fewer}than stock PD ({title})"
    )
