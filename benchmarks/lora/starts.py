"""Clean starts of the systems, each with all its loads, the systems interleaved."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.lora.systems import ONE_WORKER, OURS, STOCK, SYSTEMS
from benchmarks.lora.workload import converse, short_trace, trace
from benchmarks.sessions.drive import Load
from benchmarks.sessions.pace import seldom
from benchmarks.sessions.run import measure, warm_up
from benchmarks.sessions.running import Running, memory_bytes
from benchmarks.sessions.workload import Shape
from ps_sglang.progress import OnProgress

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is measured with so many `adapters`.

    `sessions` come under each load: `concurrent` at a time, which is more than any system keeps up
    with, and then at `parts` of the rate at which stock did those. `tokens` of KV has each system.
    """

    adapters: int
    sessions: int
    concurrent: int
    parts: tuple[float, ...]
    tokens: int
    shape: Shape
    # Stock first: by what it does the rates are chosen.
    systems: tuple[str, ...] = (STOCK, OURS, ONE_WORKER)

    @property
    def saturated(self) -> Load:
        """The closed load."""
        return Load(concurrent=self.concurrent)

    def rates(self, stock: Mapping[str, Any]) -> list[Load]:
        """The open loads, by stock's run of the closed one."""
        return [Load(rate=float(f"{part * stock['sessions_per_s']:.2g}")) for part in self.parts]


def starts(repeats: int, plans: Sequence[Plan]) -> Iterator[tuple[int, Plan, str]]:
    """Repeats, in each all plans, in each all systems, another one first in each repeat."""
    for repeat in range(repeats):
        for plan in plans:
            turn = repeat % len(plan.systems)
            for name in (*plan.systems[turn:], *plan.systems[:turn]):
                yield repeat, plan, name


def measure_all(
    repeats: int,
    plans: Sequence[Plan],
    base: Path,
    adapters: Mapping[str, Path],
    on_progress: OnProgress,
) -> Iterator[tuple[Plan, Row]]:
    """For each start its plan, and the row: seconds until ready, PSS when ready and after all loads
    in bytes, and a run for each load.

    Raises LaunchError if a system does not start or does not work.
    """
    order = list(starts(repeats, plans))
    rates: dict[int, list[Load]] = {}
    for number, (repeat, plan, name) in enumerate(order, start=1):
        label = f"{name} N={plan.adapters}"
        on_progress(f"start {number} of {len(order)}: {label}")
        chosen = dict(islice(adapters.items(), plan.adapters))
        with tempfile.TemporaryDirectory() as logs:
            began = time.monotonic()
            with SYSTEMS[name](base, chosen, plan.tokens, Path(logs)) as running:
                ready_s, ready_bytes = time.monotonic() - began, memory_bytes(running)
                on_progress(f"{label}: ready in {ready_s:.1f} s, {ready_bytes / 1e9:.2f} GB")
                warm_up(label, running, short_trace(plan.adapters), converse)
                runs = [_run(plan, label, running, plan.saturated, on_progress)]
                if plan.adapters not in rates:
                    rates[plan.adapters] = plan.rates(runs[0])
                for load in rates[plan.adapters]:
                    runs.append(_run(plan, label, running, load, on_progress))
                used_bytes = memory_bytes(running)
        row = {"ready_s": ready_s, "ready_bytes": ready_bytes, "used_bytes": used_bytes}
        yield plan, {"system": name, "repeat": repeat, **row, "runs": runs}


def _run(
    plan: Plan, label: str, running: Running, load: Load, on_progress: OnProgress
) -> dict[str, Any]:
    drawn = trace(plan.shape, plan.adapters, plan.sessions, load.rate)
    tell = seldom(on_progress)
    figures = measure(
        running, drawn, load, converse, lambda line: tell(f"  {label}, {load}: {line}")
    )
    figures |= {"load": asdict(load), "turns_per_s": figures["turns"] / figures["seconds"]}
    on_progress(f"{label}, {load}: {_told(figures)}")
    return figures


def _told(figures: Mapping[str, Any]) -> str:
    turn = figures["turn_s"]
    if not turn:
        return f"nothing went through; {figures['failures'][0]}"
    held = sum(pool["held"] for pool in figures["pool"].values())
    return (
        f"{figures['turns_per_s']:.2f} turns/s, p50 {turn['p50']:.2f} p95 {turn['p95']:.2f} s, "
        f"{figures['prefilled_tokens']} tokens prefilled, {held} held, "
        f"{len(figures['failures'])} failed"
    )
