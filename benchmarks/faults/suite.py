"""Brings up the cluster with its agents, and runs the rows."""

from __future__ import annotations

import random
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

from benchmarks.faults.agents import Agents
from benchmarks.faults.client import Client
from benchmarks.faults.hosts import TwoHosts
from benchmarks.faults.kinds.disk import log_folder
from benchmarks.faults.models import script, served
from benchmarks.faults.network import second_host
from benchmarks.faults.rows import Row
from benchmarks.faults.scene import Scene
from benchmarks.faults.system import System
from benchmarks.faults.tries import Try, attempt, figures, rest, rest_after, shortfalls
from ps_sglang.progress import OnProgress

_AGENTS: Final = 4


@asynccontextmanager
async def scene(
    kind: str, seed: int, on_progress: OnProgress, *, two_hosts: bool = False
) -> AsyncIterator[Scene]:
    """A cluster that serves models of a kind, with agents that do not speak yet."""
    with (
        tempfile.TemporaryDirectory(prefix="faults-") as name,
        log_folder(Path(name) / "logs") as logs,
    ):
        folder = Path(name)
        what = served(kind, folder / "models")
        on_progress("the reference computes what must be said")
        said = script(what, seed)
        make, network = (TwoHosts, second_host()) if two_hosts else (System, nullcontext())
        with network:
            async with (
                make(what, folder, logs) as system,
                Client(system.url, system.api_key) as client,
            ):
                on_progress("the cluster is up")
                agents = Agents(client, said.conversations, _AGENTS, seed)
                try:
                    yield Scene(system, client, agents, said, random.Random(f"faults {seed}"))
                finally:
                    await agents.stop()


async def run_rows(
    there: Scene,
    rows: Sequence[Row],
    times: int | None,
    seed: int,
    on_progress: OnProgress,
    keep: Callable[[str, dict[str, Any]], None],
    *,
    quick: bool,
) -> None:
    """Each row so many times, or as often as it says; `keep` takes its figures.

    All chance comes from `seed` and row.
    """
    await there.warm_up()
    before = await rest(there)
    for row in rows:
        tries: list[Try] = []
        most = times or row.times
        for number in range(most):
            there.source = random.Random(f"{seed} {row.name} {number}")
            done = await attempt(row, there, quick=quick)
            tries.append(done)
            shown = "too long" if done.recovery_s is None else f"{done.recovery_s:.1f} s"
            count = done.counted
            went_on = f", {done.went_on} of {done.begun} streams went on" if done.begun else ""
            on_progress(
                f"{row.name} {number + 1}/{most} {done.stage}: recovery {shown}, lost "
                f"{count.lost} of {count.requests}{went_on}"
                + "".join(f"\n    {problem}" for problem in done.problems)
            )
        after = await (rest(there) if quick else rest_after(there, before))
        found, before = figures(row, tries, before, after), after
        if missed := shortfalls(found):
            on_progress(f"{row.name} is not good: {'; '.join(missed)}")
        keep(row.name, found)
