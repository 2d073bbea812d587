"""One study: a workload on some systems, under several loads, again and again."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.agents.client import Client
from benchmarks.agents.counters import count, held_tokens
from benchmarks.agents.drive import Load, Run, drive
from benchmarks.agents.measures import measures
from benchmarks.agents.models import CONTEXT_LENGTH, Checkpoints, checkpoints
from benchmarks.agents.systems import SYSTEMS, Running, flush
from benchmarks.agents.workload import Conversation, Session, Shape, sessions
from ps_sglang.errors import LaunchError, UsageError

Say = Callable[[str], None]

_ALL_AT_ONCE: Final = 1e6  # sessions a second
_PROGRESS_S: Final = 5.0


@dataclass(frozen=True)
class Study:
    """What is to be measured.

    `rates` in sessions a second. `points`: more rates, as parts of a system's capacity, which a
    probe finds. `concurrency`: numbers of sessions at a time, measured beside the rates. `pool`:
    see `systems`.
    """

    shape: Shape
    model: str
    systems: tuple[str, ...]
    count: int
    rates: tuple[float, ...]
    points: tuple[tuple[str, float], ...]
    concurrency: tuple[int, ...]
    repeats: int
    pool: int
    seed: int = 0

    def trace(self, load: Load) -> list[Session]:
        """The sessions; of a closed load, the same without arrivals."""
        return sessions(self.shape, load.rate or _ALL_AT_ONCE, self.count, self.seed)

    def check(self) -> None:
        """Refuse a trace that no worker can hold.

        Raises:
            UsageError: saying what to change.
        """
        if unknown := set(self.systems) - set(SYSTEMS):
            raise UsageError(f"no system {sorted(unknown)[0]!r}: choose from {', '.join(SYSTEMS)}")
        if self.count < 1 or self.repeats < 1 or min(self.concurrency, default=1) < 1:
            raise UsageError("sessions, repeats and concurrency must be at least 1")
        if min(self.rates, default=1.0) <= 0:
            raise UsageError(f"a rate is {min(self.rates):g} sessions a second, must be above 0")
        least, most = self.shape.output_tokens
        if not 1 <= least <= most or self.shape.observation_tokens < 1:
            raise UsageError(
                f"output tokens from {least} to {most} with observations of "
                f"{self.shape.observation_tokens}: each must be at least 1, in this order"
            )
        ends = [
            length + turn.output
            for session in self.trace(Load(rate=1.0))
            for turn, length in session.prompts()
        ]
        if max(ends) > min(self.pool, CONTEXT_LENGTH):
            raise UsageError(
                f"a context grows to {max(ends)} tokens, but a worker holds --pool {self.pool} "
                f"and a model {CONTEXT_LENGTH}: a larger --pool or a smaller shape is needed"
            )


def run_study(study: Study, say: Say) -> dict[str, Any]:
    """Probe, then measure; the result is plain JSON.

    Raises:
        UsageError: nothing was started.
        LaunchError: a system did not start.
    """
    study.check()
    models = checkpoints(study.model, study.shape.decoders)
    probe = _probe(study, models, say)
    rates = {*study.rates, *(_rounded(part * probe[name]) for name, part in study.points)}
    loads = [Load(rate=rate) for rate in sorted(rates)]
    loads += [Load(concurrent=number) for number in study.concurrency]
    runs: list[dict[str, Any]] = []
    for repeat in range(study.repeats):
        # Each system comes first in its turn.
        turn = repeat % len(study.systems)
        for name in (*study.systems[turn:], *study.systems[:turn]):
            with _started(name, study, models, say) as running:
                for load in loads:
                    found = measure(running, study, models, load, _progress(say, name, load))
                    runs.append({"system": name, "repeat": repeat, "load": asdict(load), **found})
                    say(line(name, load, found))
    return {"study": asdict(study), "probe_sessions_per_s": probe, "runs": runs}


def measure(
    running: Running, study: Study, models: Checkpoints, load: Load, say: Say = lambda line: None
) -> dict[str, Any]:
    """One run of the trace from empty caches."""
    flush(running)
    trace = study.trace(load)
    before = count(running)
    run = asyncio.run(_drive(running, study, models, trace, load, say))
    found = measures(trace, load, run, count(running).since(before))
    return {**found, "held_tokens": held_tokens(running)}


def line(name: str, load: Load, found: dict[str, Any]) -> str:
    """A run for people."""
    turn = found["turn_s"]
    if not turn:
        return f"{name:<13} {load!s:>18}: nothing went through; {found['failures'][0]}"
    return (
        f"{name:<13} {load!s:>18}: {found['output_tokens_per_s']:6.1f} tokens/s out, turn p50 "
        f"{turn['p50']:.2f} p95 {turn['p95']:.2f} p99 {turn['p99']:.2f} s, first token p50 "
        f"{found['first_token_s']['p50']:.2f} s, hit {found['hit_ratio']:.1%}, "
        f"{found['prefilled_tokens']} prefilled, {len(found['failures'])} failed"
    )


def _progress(say: Say, name: str, load: Load) -> Say:
    """Says how far a run is, every few seconds."""
    told = time.monotonic()

    def tell(progress: str) -> None:
        nonlocal told
        if time.monotonic() - told > _PROGRESS_S:
            told = time.monotonic()
            say(f"  {name}, {load}: {progress}")

    return tell


def _probe(study: Study, models: Checkpoints, say: Say) -> dict[str, float]:
    """Sessions a second when all sessions come at once, of each system that `points` name."""
    found = {}
    load = Load(concurrent=study.count)
    for name in dict.fromkeys(name for name, _ in study.points):
        with _started(name, study, models, say) as running:
            taken = measure(running, study, models, load, _progress(say, name, load))
        say(f"probe: {line(name, load, taken)}")
        found[name] = taken["sessions_per_s"]
    return found


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")


@contextmanager
def _started(name: str, study: Study, models: Checkpoints, say: Say) -> Iterator[Running]:
    say(f"starting {name}")
    with (
        tempfile.TemporaryDirectory() as logs,
        SYSTEMS[name](models, study.pool, Path(logs)) as running,
    ):
        # One session that is not counted: whatever a worker does once is done then.
        first = replace(study.shape, pause=0.0)
        (session,) = sessions(first, _ALL_AT_ONCE, 1, study.seed)
        run = asyncio.run(_drive(running, study, models, [session], Load(concurrent=1)))
        if run.failures:
            raise LaunchError(f"{name} does not work: {run.failures[0]}")
        yield running


async def _drive(
    running: Running,
    study: Study,
    models: Checkpoints,
    trace: Sequence[Session],
    load: Load,
    say: Say = lambda line: None,
) -> Run:
    def conversation(session: Session) -> Conversation:
        return Conversation(session, study.seed, models.vocabulary, models.first)

    async with Client(running.endpoints) as client:
        return await drive(trace, load, conversation, client.ask, say)
