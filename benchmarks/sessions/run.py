"""One run of a trace on a system that is up, from empty caches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks.sessions.client import Client
from benchmarks.sessions.counters import count, pools
from benchmarks.sessions.drive import Load, Run, drive
from benchmarks.sessions.measures import measures
from benchmarks.sessions.pools import Sample, used, watched
from benchmarks.sessions.running import Running, flush
from benchmarks.sessions.workload import Conversation, Session
from ps_sglang.errors import LaunchError
from ps_sglang.progress import OnProgress

Converse = Callable[[Session], Conversation]
"""Makes a session's context."""


def measure(
    running: Running,
    trace: Sequence[Session],
    load: Load,
    converse: Converse,
    on_progress: OnProgress = lambda line: None,
) -> dict[str, Any]:
    """The trace from empty caches: see `measures`, and `used` for the key `pool`."""
    flush(running)
    counts = count(running)
    run, samples = asyncio.run(_watched(running, trace, load, converse, on_progress))
    figures = measures(trace, load, run, count(running).since(counts))
    return {**figures, "pool": used(samples)}


def warm_up(name: str, running: Running, trace: Sequence[Session], converse: Converse) -> None:
    """Sessions that are not counted: whatever a worker does once is done then.

    Raises LaunchError if one fails.
    """
    run = asyncio.run(_drive(running, trace, Load(), converse))
    if run.failures:
        raise LaunchError(f"{name} does not work: {run.failures[0]}")


async def _watched(
    running: Running,
    trace: Sequence[Session],
    load: Load,
    converse: Converse,
    on_progress: OnProgress,
) -> tuple[Run, list[Sample]]:
    async with watched(partial(pools, running)) as samples:
        run = await _drive(running, trace, load, converse, on_progress)
    return run, samples


async def _drive(
    running: Running,
    trace: Sequence[Session],
    load: Load,
    converse: Converse,
    on_progress: OnProgress = lambda line: None,
) -> Run:
    async with Client(running.endpoints) as client:
        return await drive(trace, load, converse, client.ask, on_progress)
