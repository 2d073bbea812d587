"""What the starts with one number of adapters come to, and how ours compares with stock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from benchmarks.lora.systems import OURS, STOCK
from benchmarks.report import spread
from benchmarks.sessions.measures import sustained

Row = Mapping[str, Any]
Value = Callable[[Row], float]

_OF_START: Final[dict[str, Value]] = {
    "ready_s": lambda start: start["ready_s"],
    "ready_gb": lambda start: start["ready_bytes"] / 1e9,
    "used_gb": lambda start: start["used_bytes"] / 1e9,
}
_OF_RUN: Final[dict[str, Value]] = {
    "turns_per_s": lambda run: run["turns_per_s"],
    "tokens_per_s": lambda run: run["total_tokens_per_s"],
    "output_tokens_per_s": lambda run: run["output_tokens_per_s"],
    "turn_p50_s": lambda run: run["turn_s"]["p50"],
    "turn_p95_s": lambda run: run["turn_s"]["p95"],
    "prefilled_tokens": lambda run: run["prefilled_tokens"],
    "held_tokens": lambda run: sum(pool["held"] for pool in run["pool"].values()),
}


def summary(starts: Sequence[Row]) -> dict[str, Any]:
    """By system; spreads are over the starts.

    `saturated` is the closed load. `rates` are the open ones, sessions a second, each with
    whether stock `sustained` it (see `sustained`). `against_stock` has, for each system of ours,
    how many times its throughput at saturation is stock's (`throughput`), how many times lower its
    p95 of a turn is at the highest rate that stock sustains (`p95`, None without one), how many
    times fewer tokens it prefilled and held at saturation.
    """
    systems = {
        name: _system([start for start in starts if start["system"] == name])
        for name in dict.fromkeys(start["system"] for start in starts)
    }
    stock_runs = [run for start in starts if start["system"] == STOCK for run in start["runs"]]
    kept_up = sustained(stock_runs)
    return {
        "systems": systems,
        "stock_sustains": kept_up,
        "against_stock": {
            name: _against(systems[name], systems[STOCK], kept_up)
            for name in systems
            if name != STOCK
        },
    }


def _system(starts: Sequence[Row]) -> dict[str, Any]:
    runs = [run for start in starts for run in start["runs"]]
    rates = sorted({rate for run in runs if (rate := run["load"]["rate"]) is not None})
    return {
        **_spreads(starts, _OF_START),
        "saturated": _spreads([run for run in runs if run["load"]["rate"] is None], _OF_RUN),
        "rates": {
            f"{rate:g}": _spreads([run for run in runs if run["load"]["rate"] == rate], _OF_RUN)
            for rate in rates
        },
    }


def _spreads(rows: Sequence[Row], values: Mapping[str, Value]) -> dict[str, dict[str, float]]:
    return {name: spread([value(row) for row in rows]) for name, value in values.items()}


def _against(ours: Row, stock: Row, kept_up: Sequence[float]) -> dict[str, float | None]:
    def times(value: str) -> float:
        return _median(ours["saturated"], value) / _median(stock["saturated"], value)

    p95 = None
    if kept_up:
        at = f"{kept_up[-1]:g}"
        theirs, own = (_median(one["rates"][at], "turn_p95_s") for one in (stock, ours))
        p95 = theirs / own
    return {
        "throughput": times("turns_per_s"),
        "p95": p95,
        "prefilled": 1 / times("prefilled_tokens"),
        "held": 1 / times("held_tokens"),
    }


def _median(spreads: Row, value: str) -> float:
    return float(spreads[value]["median"])


def lines(adapters: int, found: Row) -> Iterator[str]:
    """A table's rows for people: medians."""
    for name, system in found["systems"].items():
        at = system["saturated"]
        figures = {value: _median(at, value) for value in _OF_RUN}
        yield (
            f"N={adapters:<3} {name:<11} {figures['turns_per_s']:6.2f} turns/s "
            f"{figures['tokens_per_s']:7.0f} tokens/s  turn p50 {figures['turn_p50_s']:.2f} "
            f"p95 {figures['turn_p95_s']:.2f} s  prefilled {figures['prefilled_tokens']:.0f}  "
            f"held {figures['held_tokens']:.0f}  ready {_median(system, 'ready_s'):.1f} s  "
            f"{_median(system, 'used_gb'):.2f} GB"
        )
        for rate, at in system["rates"].items():
            yield (
                f"      {name:<11} at {rate} sessions/s: turn p50 "
                f"{_median(at, 'turn_p50_s'):.2f} p95 {_median(at, 'turn_p95_s'):.2f} s"
            )
    for name, against in found["against_stock"].items():
        yield f"N={adapters:<3} {name:<11} against stock: {_compared(against)}"


def _compared(against: Row) -> str:
    p95 = "not compared" if against["p95"] is None else f"{against['p95']:.1f}x lower"
    return (
        f"throughput {against['throughput']:.1f}x, p95 {p95}, {against['prefilled']:.1f}x fewer "
        f"tokens prefilled, {against['held']:.1f}x fewer held"
    )


def last_line(adapters: int, found: Row, decode_step: float) -> str:
    """What the benchmark ends with; ours is the cluster of a prefill and a decode worker."""
    against = found["against_stock"][OURS]
    p95 = "p95 not compared (no rate sustained)"
    if against["p95"] is not None:
        p95 = f"p95 {against['p95']:.1f}x lower than stock multi-LoRA"
    return (
        f"lora: N={adapters} throughput {against['throughput']:.1f}x, {p95}, "
        f"decode step {decode_step:.2f}x"
    )
