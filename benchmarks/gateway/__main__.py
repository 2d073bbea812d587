"""Our gateway beside `sglang-router`, both before the same stand-in engines.

    python -m benchmarks.gateway [--quick]

Latency: what each adds to chats that the engines answer at once. Trace: sessions of four decoders
over a growing conversation, before 2 and 4 prefill workers whose pools are too small for two
copies of everything. `sglang-router` serves one decoder a process, so it runs once per decoder.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import uvloop

from benchmarks import index
from benchmarks.gateway import latency, systems, trace
from benchmarks.gateway.latency import MODES, Direct, Target, Through
from benchmarks.gateway.messages import EngineConfig, Pace
from benchmarks.gateway.oracle import POLICIES, Oracle
from benchmarks.gateway.vocabulary import write_tokenizer
from benchmarks.report import save

OURS, PEER = "gateway", "sglang-router"
RATE: Final = 300.0
PACE: Final = Pace(prefill_token=10e-6, moved_token=1e-6, decode_token=1e-3)
POOL_TOKENS: Final = 32_768
SLOTS_PER_WORKER: Final = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of everything, in under 50 s")
    parser.add_argument("--repeats", type=int, default=5, help="of the latency runs (default 5)")
    parser.add_argument("--only", choices=("latency", "trace", "index"), help="only this part")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is stopped
    quick = options.quick
    figures: dict[str, Any] = {"peer": {"sglang-router": version("sglang-router")}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(folder / "tokenizer")
        if options.only in (None, "latency"):
            figures["latency"] = measure_latency(folder, 2 if quick else options.repeats, quick)
        if options.only in (None, "trace"):
            figures["trace"] = [
                measure_trace(folder, workers, quick) for workers in ((2,) if quick else (2, 4))
            ]
    if options.only == "index" or (options.only is None and not quick):
        figures["index"] = index.measured()
    if not quick and options.only is None:
        print(f"saved {save('gateway', figures)}")
    if options.only is None:
        print(summary(figures))
    return 0


def summary(figures: dict[str, Any]) -> str:
    """The last line: hit ratios of the trace before 2 prefill workers, latency of whole answers."""
    hits = {name: one["hit_percent"] for name, one in figures["trace"][0]["systems"].items()}
    oracle = max(hits[policy] for policy in POLICIES if policy in hits)
    p99 = {
        name: figures["latency"]["whole"][name]["added_ms"]["total_p99"]["median"]
        for name in (OURS, PEER)
    }
    return (
        f"gateway: hit {hits[OURS]:.1f}% vs {hits[PEER]:.1f}% router vs {oracle:.1f}% oracle, "
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


def measure_trace(folder: Path, workers: int, quick: bool) -> dict[str, Any]:
    """Each system alone, before engines whose trees are empty."""
    configs = [
        *(
            engine(folder, f"prefill-{number}", pace=PACE, pool_tokens=POOL_TOKENS)
            for number in range(workers)
        ),
        *(
            engine(folder, name, decoder=name, pace=PACE, pool_tokens=8 * POOL_TOKENS)
            for name in trace.ROLES
        ),
    ]
    slots = SLOTS_PER_WORKER * workers
    shape = trace.Shape(slots, sessions=slots * (2 if quick else 5))
    found = {}
    with systems.fleet(folder / "tokenizer", configs) as engines:
        for name in (PEER, OURS, *(POLICIES[1:] if quick else POLICIES)):
            systems.forget(engines)
            with running(name, engines, folder) as (target, _):
                taken = uvloop.run(trace.run(shape, workers, target))
            found[name] = trace.judged(taken, systems.totals(engines.prefill))
            one = found[name]
            print(
                f"{workers} prefill workers, {name:<14} hit {one['hit_percent']:5.1f}%, "
                f"imbalance {one['imbalance']:.2f}, first words p95 {one['first_p95_ms']:.0f} ms, "
                f"whole turn p95 {one['total_p95_ms']:.0f} ms, {one['requests']} requests",
                flush=True,
            )
    return {"prefill_workers": workers, "shape": asdict(shape), "systems": found}


def engine(folder: Path, name: str, **options: Any) -> EngineConfig:
    """An engine with the benchmark's tokenizer."""
    return EngineConfig(name, str(folder / "tokenizer"), **options)


@contextlib.contextmanager
def running(
    name: str, engines: systems.Fleet, folder: Path
) -> Iterator[tuple[Target, tuple[int, ...]]]:
    """A system by its name, and its processes."""
    if name == "direct":
        yield Direct(engines), ()
    elif name in POLICIES:
        yield Oracle(engines, name), ()
    else:
        start = systems.gateway if name == OURS else systems.routers
        with start(engines, folder) as served:
            yield Through(served), served.pids


def _spread(found: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        name: {
            "min": min(one[name] for one in found),
            "median": statistics.median(one[name] for one in found),
            "max": max(one[name] for one in found),
        }
        for name in found[0]
    }


if __name__ == "__main__":
    sys.exit(main())
