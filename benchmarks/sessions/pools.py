"""How full the KV pools are while a system is at work."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from benchmarks.sessions.counters import Pool

_EVERY_S: Final = 3.0
"""To answer costs each worker some milliseconds, and stock has more workers than we."""

Sample = Mapping[str, Pool]


@asynccontextmanager
async def watched(look: Callable[[], Sample]) -> AsyncIterator[list[Sample]]:
    """Look every few seconds inside the block, and once more at its end."""
    samples: list[Sample] = []

    async def watch() -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            samples.append(await asyncio.to_thread(look))

    watching = asyncio.create_task(watch())
    try:
        yield samples
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
    samples.append(look())


def used(samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    """By role: `capacity` and what was `held` at the end, in tokens; and the parts of the capacity
    that were held at most and in the mean.

    All is as the workers last told: SGLang refreshes these gauges with each prefill, every 40
    decode steps, and mostly when it becomes idle.
    """
    by_role = {}
    for role, pool in samples[0].items():
        parts = [sample[role].held / sample[role].capacity for sample in samples]
        by_role[role] = {
            "capacity": pool.capacity,
            "held": samples[-1][role].held,
            "peak": max(parts),
            "mean": statistics.fmean(parts),
        }
    return by_role
