"""Hours of service with a fault a minute: what stays exact, and what grows."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from benchmarks.faults.rows import ROWS
from benchmarks.faults.scene import Scene
from benchmarks.faults.tries import Try, attempt, rest
from ps_sglang.progress import OnProgress

_EVERY_S: Final = 60.0
_SETTLING_PART: Final = 0.1
"""Of the time: caches fill and pools of threads grow at first, which is no leak."""
_GROWING: Final = ("memory_mb", "descriptors", "sockets", "threads", "files")


async def soak(there: Scene, hours: float, seed: int, on_progress: OnProgress) -> dict[str, Any]:
    """A random fault each minute, and at its end what all processes hold at rest."""
    source = random.Random(f"soak {seed}")
    kind = there.system.what.kind
    rows = [row for row in ROWS if row.soaked and row.quick and row.missing(kind) is None]
    await there.warm_up()
    began = time.monotonic()
    samples: list[tuple[float, dict[str, int]]] = []
    tries: list[Try] = []
    happened: Counter[str] = Counter()
    while (now := time.monotonic()) < began + 3600 * hours:
        row = source.choice(rows)
        there.source = random.Random(f"soak {seed} {len(tries)}")
        start = len(there.client.outcomes)
        done = await attempt(row, there, quick=True)
        tries.append(done)
        happened[row.name] += 1
        there.agents.resume()
        await asyncio.sleep(max(0.0, now + _EVERY_S - time.monotonic()))
        held = await rest(there)
        samples.append((time.monotonic() - began, asdict(held)))
        on_progress(
            f"{len(tries)} {row.name}: {len(there.client.outcomes) - start} requests, "
            f"{held.memory_mb} MB, {held.descriptors} descriptors"
            + "".join(f"\n    {problem}" for problem in done.problems)
        )
    kept = samples[round(len(samples) * _SETTLING_PART) :]
    recoveries = [one.recovery_s for one in tries if one.recovery_s is not None]
    return {
        "hours": hours,
        "faults": dict(happened),
        "passed": sum(one.passed for one in tries),
        "requests": len(there.client.outcomes),
        "lost": sum(one.counted.lost for one in tries),
        "wrong": sum(one.counted.wrong for one in tries),
        "unaccounted": sum(one.counted.unaccounted for one in tries),
        "worst_recovery_s": max(recoveries, default=None),
        "slopes_per_hour": {
            name: slope([(at / 3600, float(held[name])) for at, held in kept]) for name in _GROWING
        },
        "problems": [text for one in tries for text in one.problems],
        "samples": [{"s": round(at), **held} for at, held in samples],
    }


def slope(points: Sequence[tuple[float, float]]) -> dict[str, float] | None:
    """The line of least squares through points, with the interval of its slope.

    The interval is twice the standard error on each side, about 95 %. None of fewer than three
    points, or points of one time.
    """
    if len(points) < 3 or len({x for x, _ in points}) < 2:
        return None
    xs, ys = zip(*points, strict=True)
    found = statistics.linear_regression(xs, ys)
    rests = [y - (found.slope * x + found.intercept) for x, y in points]
    mean = statistics.fmean(xs)
    spread = sum((x - mean) ** 2 for x in xs)
    error = (sum(rest**2 for rest in rests) / (len(points) - 2) / spread) ** 0.5
    return {"slope": found.slope, "low": found.slope - 2 * error, "high": found.slope + 2 * error}
