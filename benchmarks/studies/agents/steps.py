"""What steps cost on this machine: prefills, decode steps and moves, each alone on it.

    python -m benchmarks.studies.agents.steps --model small --out out/steps.json

One prefill and one decode worker run as in the systems: same model, flags and threads. Every
figure is what the workers tell of requests that came through the gateway. The study measures the
same beside its runs; OUT is for `benchmarks.studies.simulate --measured`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.report import run, timed, to_json, write
from benchmarks.sessions.counters import count, pools
from benchmarks.sessions.pace import seldom
from benchmarks.sessions.pools import watched
from benchmarks.sessions.running import Running, ask_worker, flush
from benchmarks.studies.agents.fit import Sample, fit, misses
from benchmarks.studies.agents.models import MODELS, checkpoints
from benchmarks.studies.agents.samplers import Grid, Prompts, decodes, moves, prefills
from benchmarks.studies.agents.systems import ours
from ps_sglang.progress import OnProgress

POOL: Final = 65536
_REPEATS: Final = 3
_ONCE: Final = Grid((0,), (64,), (64,), (1,), (64,), 4, pause=0.0, idle=0.0)


@dataclass
class Found:
    """Samples by kind, and sums: seconds of a role's steps and CPU seconds of its worker for them.

    `idle`: CPU seconds a second of each worker while nothing is asked, at each time. `others_s`:
    CPU seconds of the gateway and this client for the `asked` requests. `engine`: tokens of a
    page, and of a prefill `chunk` at most.
    """

    samples: dict[str, list[Sample]] = field(default_factory=dict)
    steps_s: dict[str, float] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)
    idle: list[float] = field(default_factory=list)
    others_s: float = 0.0
    asked: int = 0
    engine: dict[str, int] = field(default_factory=dict)

    @property
    def cores(self) -> dict[str, float]:
        """CPU seconds of a role's worker for each second of its steps.

        That is its threads, and all that its other processes do for the requests.
        """
        return {role: self.cpu_s[role] / seconds for role, seconds in self.steps_s.items()}

    def add(self, other: Found) -> None:
        """What was found at another time."""
        for kind, samples in other.samples.items():
            self.samples.setdefault(kind, []).extend(samples)
        for mine, others in ((self.steps_s, other.steps_s), (self.cpu_s, other.cpu_s)):
            for role, seconds in others.items():
                mine[role] = mine.get(role, 0.0) + seconds
        self.idle += other.idle
        self.others_s += other.others_s
        self.asked += other.asked
        self.engine = other.engine


def measure_apart(
    model: str,
    pool: int = POOL,
    grid: Grid | None = None,
    on_progress: OnProgress = lambda line: None,
) -> Found:
    """All samples, on a prefill and a decode worker that are started for it."""
    models = checkpoints(model, 1)
    with (
        tempfile.TemporaryDirectory() as logs,
        ours(models, pool, Path(logs)) as running,
    ):
        ids = range(models.first, models.vocabulary)
        measure(running, ids, _ONCE)  # what is done only once
        return measure(running, ids, grid or Grid(), on_progress)


def measure(
    running: Running, ids: range, grid: Grid, on_progress: OnProgress = lambda line: None
) -> Found:
    """All samples, on a system of one decoder that nothing else asks."""
    prompts, seldom_report = Prompts(ids), seldom(on_progress)
    (prefill,) = (process.url for process in running.processes if process.role == "prefill")
    server_info = json.loads(ask_worker(f"{prefill}/server_info"))
    measured = Found(
        engine={"page": server_info["page_size"], "chunk": server_info["chunked_prefill_size"]}
    )
    idle = asyncio.run(_idle(running, grid.idle))
    measured.idle.append(idle)
    for kind, role, take in (
        ("prefill", "prefill", prefills),
        ("decode", "decode", decodes),
        ("move", "decode", moves),
    ):
        flush(running)
        tell = partial(_tell, seldom_report, kind)
        counts, own_s, began = count(running), time.process_time(), time.monotonic()
        taken = asyncio.run(take(running, prompts, grid, tell))
        own_s = time.process_time() - own_s
        cpu_s, took = count(running).since(counts).cpu_s, time.monotonic() - began
        measured.samples[kind] = taken.samples
        if kind != "move":
            measured.steps_s[role] = taken.busy
            measured.cpu_s[role] = cpu_s[role] - idle * took
        measured.asked += taken.asked
        measured.others_s += cpu_s["gateway"] + own_s
    return measured


def _tell(on_progress: OnProgress, kind: str, done: int) -> None:
    on_progress(f"  what steps cost: {done} samples of {kind}")


def costs(measured: Found, pool_tokens: int = POOL) -> dict[str, Any]:
    """`measured`: the keys of `simulate.hardware.Measured`; and what they rest on.

    `off`: relative errors of the fits.
    """
    names = {
        "prefill": ("prefill_step", "prefill_token", "prefill_product"),
        "decode": ("decode_step", "decode_request", "decode_context_token"),
        "move": ("move_fixed", "move_token"),
    }
    taken: dict[str, float] = {"pool_tokens": pool_tokens, **measured.engine}
    taken |= {f"{role}_cores": used for role, used in measured.cores.items()}
    taken |= {"cores": os.cpu_count() or 1, "request": measured.others_s / measured.asked}
    taken["idle"] = statistics.fmean(measured.idle)
    errors = {}
    for kind, samples in measured.samples.items():
        fitted = fit(samples)
        errors[kind] = misses(samples, fitted)
        taken |= dict(zip(names[kind], fitted.values(), strict=True))
    return {
        "measured": taken,
        "off": errors,
        "samples": {
            kind: [{**counts, "seconds": seconds} for counts, seconds in samples]
            for kind, samples in measured.samples.items()
        },
    }


async def _idle(running: Running, seconds: float) -> float:
    """CPU seconds a second of a worker that has nothing to do but to be looked at as in a study."""
    counts, began = count(running), time.monotonic()
    async with watched(partial(pools, running)):
        await asyncio.sleep(seconds)  # this is what is measured
    cpu_s, took = count(running).since(counts).cpu_s, time.monotonic() - began
    return (cpu_s["prefill"] + cpu_s["decode"]) / took / len(running.workers)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 measured, 1 something did not work, 2 refused."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.agents.steps",
        description="What prefills, decode steps and moves cost, each alone here; some minutes.",
    )
    add = parser.add_argument
    add("--model", choices=MODELS, default="small", help="shape of the weights (default small)")
    add(
        "--pool", type=int, default=POOL, metavar="TOKENS",
        help=f"KV memory of a worker (default {POOL})",
    )  # fmt: skip
    add("--out", type=Path, metavar="FILE", help="for benchmarks.studies.simulate --measured")
    args = parser.parse_args(argv)
    return run("agents.steps", lambda: _measure(args, timed()))


def _measure(args: argparse.Namespace, on_progress: OnProgress) -> int:
    on_progress("starting a prefill and a decode worker; then some minutes of measuring")
    result = costs(
        measure_apart(args.model, args.pool, Grid(repeats=_REPEATS), on_progress), args.pool
    )
    for name, value in result["measured"].items():
        print(f"{name:>22}: {value:.6g}")
    for kind, error in result["off"].items():
        print(f"{kind}: off by {error['median']:.1%} in the median, {error['most']:.1%} at most")
    if args.out is not None:
        write(args.out, to_json(result["measured"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
