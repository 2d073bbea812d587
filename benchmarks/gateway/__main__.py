"""Our gateway beside `sglang-router`, both before the same stand-in engines.

    python -m benchmarks.gateway [--quick]

Latency: what each adds to chats that the engines answer at once. Trace: sessions in which four
decoders take turns on a growing conversation, before 2 and 4 prefill workers, over sizes of their
pools. `sglang-router` serves one decoder a process, so it runs once per decoder: before the same
prefill workers, each router with what it has seen itself.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import uvloop

from benchmarks.gateway import agents, latency, systems
from benchmarks.gateway.compared import OURS, PEER, engine, running
from benchmarks.gateway.latency import MODES
from benchmarks.gateway.vocabulary import write_tokenizer
from benchmarks.report import count, parser, run, save, spread

RATE: Final = 300.0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save."""
    command = parser("gateway", __doc__, "less of everything, in under 50 s")
    command.add_argument(
        "--repeats", type=count, help="of the latency runs (default 5, with --quick 2)"
    )
    command.add_argument("--only", choices=("latency", "trace"), help="only this part; not saved")
    options = command.parse_args(argv)
    if options.only and options.publish:
        command.error("--publish needs both parts: leave --only out")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is stopped
    return run("gateway", lambda: _measure(options))


def _measure(options: argparse.Namespace) -> int:
    quick = options.quick
    figures: dict[str, Any] = {"peer": {PEER: systems.router_version()}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(folder / "tokenizer")
        if options.only in (None, "latency"):
            figures["latency"] = measure_latency(
                folder, options.repeats or (2 if quick else 5), quick
            )
        if options.only in (None, "trace"):
            figures["trace"] = agents.measure(folder, quick)
            agents.print_medians(figures["trace"]["medians"])
    if options.only is None:
        save(
            "gateway", figures, quick=quick, publish=options.publish, summary=without_runs(figures)
        )
        print(summary(figures))
    return 0


def without_runs(figures: dict[str, Any]) -> dict[str, Any]:
    """What the reference keeps: of the traces the medians over their seeds."""
    trace = {name: value for name, value in figures["trace"].items() if name != "runs"}
    return {**figures, "trace": trace}


def summary(figures: dict[str, Any]) -> str:
    """The last line: hit ratios of the trace before 2 prefill workers, latency of whole answers."""
    hits = agents.default_hits(figures["trace"]["medians"])
    p99 = {
        name: figures["latency"]["whole"][name]["added_ms"]["total_p99"]["median"]
        for name in (OURS, PEER)
    }
    return (
        f"gateway: hit {hits['gateway']:.1f}% vs {hits['router']:.1f}% router vs "
        f"{hits['oracle']:.1f}% oracle, "
        f"added p99 {p99[OURS]:.2f} ms vs {p99[PEER]:.2f} ms"
    )


def measure_latency(folder: Path, repeats: int, quick: bool) -> dict[str, Any]:
    """Repeats take turns: each system is started, warmed up, measured in all modes and stopped."""
    modes = {name: mode for name, mode in MODES.items() if mode.quick_ack or not quick}
    seconds, count = (1.2, 300) if quick else (5.0, 3000)
    runs: dict[str, dict[str, list[latency.Taken]]] = {name: {} for name in modes}
    carried: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in modes}
    configs = [
        *(engine(folder, f"prefill-{number}") for number in range(2)),
        engine(folder, "decoder", decoder="decoder"),  # one, so that one router serves it
    ]
    with systems.fleet(folder / "tokenizer", configs) as engines:
        for repeat in range(repeats):
            for name in ("direct", OURS, PEER):
                systems.forget(engines)  # the same prompts are new to every system
                with running(name, engines, folder) as (target, pids):
                    uvloop.run(latency.warm_up(target, engines.decoders))
                    for number, (kind, mode) in enumerate(modes.items()):
                        seed = 100 * (number + 1) + repeat
                        run = latency.open_loop(target, engines.decoders, mode, RATE, seconds, seed)
                        runs[kind].setdefault(name, []).append(uvloop.run(run))
                    for kind in ("whole", "streamed"):
                        load = latency.carried(target, engines.decoders, modes[kind], count, pids)
                        carried[kind].setdefault(name, []).append(uvloop.run(load))
    figures: dict[str, Any] = {"rate_per_second": RATE, "repeats": repeats}
    for kind in modes:
        ground = runs[kind]["direct"]
        figures[kind] = {}
        for name, taken in runs[kind].items():
            more = [latency.added(one, zero) for one, zero in zip(taken, ground, strict=True)]
            figures[kind][name] = {
                "total_ms": _spread([asdict(one.total) for one in taken]),
                "first_ms": _spread([asdict(one.first) for one in taken]),
                "added_ms": _spread(more),
                **(_spread(carried[kind][name]) if carried.get(kind) else {}),
            }
            _print_latency(kind, name, figures[kind][name])
    return figures


def _print_latency(kind: str, name: str, found: dict[str, Any]) -> None:
    more = found["added_ms"]
    line = (
        f"{kind:<20} {name:<14} added p50 {more['total_p50']['median']:6.2f} ms, "
        f"p99 {more['total_p99']['median']:6.2f} ms "
        f"({more['total_p99']['min']:.2f} to {more['total_p99']['max']:.2f}); "
        f"to the first words p50 {more['first_p50']['median']:6.2f}, "
        f"p99 {more['first_p99']['median']:6.2f} ms"
    )
    if "requests_per_second" in found:
        line += (
            f"; {found['requests_per_second']['median']:.0f} requests/s, "
            f"{found['cpu_ms_per_request']['median']:.2f} ms CPU each"
        )
    print(line, flush=True)


def _spread(found: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {name: spread([one[name] for one in found]) for name in found[0]}


if __name__ == "__main__":
    sys.exit(main())
