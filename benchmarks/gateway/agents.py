"""The agent trace before each system: hit ratios, imbalance and times, over sizes of the pool.

A pool size is given in working sets: 1.0 means that the prefill workers together have room for all
live conversations once, as `trace.working_set` expects them. At exactly that, least recently used
pages go just before they are asked for again in one trace and just stay in another: chance decides.
The size of the summary is the one that an operator would provide: the smallest of the sweep at
which the oracle finds nine tenths of the prompts' tokens in the simulation, with each of its usual
seeds. That choice looks at the oracle alone. Other sizes show what is different where little fits,
and where two copies do. Below a half, the longest conversations would not fit one worker.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import uvloop

from benchmarks.gateway import systems, trace
from benchmarks.gateway.compared import OURS, PEER, engine, running
from benchmarks.gateway.messages import Pace
from benchmarks.gateway.oracle import POLICIES

PACE: Final = Pace(prefill_token=10e-6, moved_token=1e-6, decode_token=3e-3)
"""A large model's, 100 times faster: 0.1 s for 10,000 tokens' prefill, 3 ms for a step."""
POOL: Final = 1.5
OTHER_POOLS: Final = (0.5, 1.0, 2.0)
SEEDS: Final = (21, 22, 23)  # no weight of the router was chosen by them
_SLOTS_PER_WORKER: Final = 16
_SESSIONS_PER_SLOT: Final = 2
_DECODE_POOL_TOKENS: Final = 1 << 20  # decode workers hold all they ever saw

Figures = dict[str, Any]


def shape(workers: int) -> trace.Shape:
    """The trace before so many prefill workers."""
    slots = _SLOTS_PER_WORKER * workers
    return trace.Shape(slots, _SESSIONS_PER_SLOT * slots)


@functools.cache
def pool_tokens(workers: int, pool: float) -> int:
    """What each of so many prefill workers holds, where all hold `pool` working sets."""
    return round(pool * trace.working_set(shape(workers)) / workers)


def measure(folder: Path, quick: bool) -> Figures:
    """Play all traces. `quick`: one seed and one pool size before 2 prefill workers."""
    runs = []
    for workers in (2,) if quick else (2, 4):
        configs = [
            *(engine(folder, f"prefill-{number}", pace=PACE) for number in range(workers)),
            *(
                engine(
                    folder,
                    name,
                    decoder=name,
                    pace=PACE,
                    pool_tokens=_DECODE_POOL_TOKENS,
                    stream_tokens=4,
                )
                for name in trace.ROLES
            ),
        ]
        with systems.fleet(folder / "tokenizer", configs) as engines:
            for pool, seed, names in _plan(workers, quick):
                found = {name: _played(name, engines, folder, pool, seed) for name in names}
                runs.append(
                    {"prefill_workers": workers, "pool": pool, "seed": seed, "systems": found}
                )
    return {
        "shape": asdict(shape(2)),
        "slots_per_worker": _SLOTS_PER_WORKER,
        "pool": POOL,
        "runs": runs,
        "medians": medians(runs),
    }


def _plan(workers: int, quick: bool) -> Iterator[tuple[float, int, tuple[str, ...]]]:
    usual = (PEER, OURS, "balanced")
    for seed in SEEDS[:1] if quick else SEEDS:
        # Before 4 workers `greedy` is the worse one at this size, in the simulation with all seeds.
        yield POOL, seed, (PEER, OURS, *POLICIES) if workers == 2 and not quick else usual
    if workers == 2 and not quick:
        for pool in OTHER_POOLS:
            yield pool, SEEDS[0], usual


def _played(
    name: str, engines: systems.Fleet, folder: Path, pool: float, seed: int
) -> dict[str, float]:
    """A trace before a system, and engines whose trees are empty."""
    workers = len(engines.prefill)
    systems.forget(engines, pool_tokens(workers, pool))
    with running(name, engines, folder) as (target, _):
        taken = uvloop.run(trace.run(shape(workers), seed, target))
    one = trace.judged(taken, systems.totals(engines.prefill))
    print(
        f"{workers} prefill workers, pool {pool:.1f}, seed {seed}, {name:<14}"
        f" hit {one['hit_percent']:5.1f}%, imbalance {one['imbalance']:.2f},"
        f" first words p95 {one['first_p95_ms']:4.0f} ms,"
        f" whole turn p95 {one['total_p95_ms']:4.0f} ms, {one['requests']} requests"
        f" in {one['seconds']:.0f} s",
        flush=True,
    )
    return one


def medians(runs: Sequence[Figures]) -> list[Figures]:
    """Over the seeds, for each number of workers and pool size. The better policy is the oracle."""
    groups: dict[tuple[int, float], list[Figures]] = {}
    for run in runs:
        groups.setdefault((run["prefill_workers"], run["pool"]), []).append(run["systems"])

    def median(systems: Sequence[Figures], name: str, what: str) -> float:
        return float(statistics.median(one[name][what] for one in systems))

    found = []
    for (workers, pool), group in sorted(groups.items()):
        names = {
            "gateway": OURS,
            "router": PEER,
            "oracle": max(
                (one for one in POLICIES if one in group[0]),
                key=lambda one: median(group, one, "hit_percent"),
            ),
        }
        hits = {role: median(group, name, "hit_percent") for role, name in names.items()}
        found.append(
            {
                "prefill_workers": workers,
                "pool": pool,
                "seeds": len(group),
                "hit_percent": hits,
                "times_router": hits["gateway"] / hits["router"],
                **{
                    what: {role: median(group, name, what) for role, name in names.items()}
                    for what in ("imbalance", "first_p95_ms", "total_p95_ms")
                },
            }
        )
    return found


def print_medians(found: Sequence[Figures]) -> None:
    """One line for each number of workers and pool size."""
    for one in found:
        hits, uneven, late = one["hit_percent"], one["imbalance"], one["total_p95_ms"]
        print(
            f"{one['prefill_workers']} prefill workers, pool {one['pool']:.1f}:"
            f" hit {hits['gateway']:.1f}% = {one['times_router']:.2f} x router's"
            f" {hits['router']:.1f}% (oracle {hits['oracle']:.1f}%);"
            f" imbalance {uneven['gateway']:.2f} (router {uneven['router']:.2f},"
            f" oracle {uneven['oracle']:.2f}); p95 of a turn {late['gateway']:.0f} ms"
            f" (router {late['router']:.0f} ms, oracle {late['oracle']:.0f} ms)",
            flush=True,
        )


def default_hits(found: Sequence[Figures]) -> dict[str, float]:
    """The hit ratios of the summary: 2 prefill workers, pool size POOL."""
    return next(
        dict(one["hit_percent"])
        for one in found
        if (one["prefill_workers"], one["pool"]) == (2, POOL)
    )
