"""One study: a workload on some systems, under several loads, again and again."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.sessions import run
from benchmarks.sessions.drive import Load
from benchmarks.sessions.pace import Pace, seldom
from benchmarks.sessions.running import Running
from benchmarks.sessions.workload import (
    ALL_AT_ONCE,
    TEXT,
    Conversation,
    Session,
    Shape,
    sessions,
)
from benchmarks.studies.agents.ideal import amounts
from benchmarks.studies.agents.models import CONTEXT_LENGTH, Checkpoints, checkpoints
from benchmarks.studies.agents.steps import Found, costs, measure_apart
from benchmarks.studies.agents.systems import SYSTEMS
from benchmarks.studies.agents.text import text_sessions
from ps_sglang.errors import LaunchError, UsageError
from ps_sglang.progress import OnProgress


@dataclass(frozen=True)
class Study:
    """What is to be measured.

    `rates` in sessions a second. `parts`: more rates, as parts of what the first system does when
    all sessions come at once, which is measured then on every system. `concurrency`: numbers of
    sessions at a time. `pool`: see `systems`.
    """

    shape: Shape
    model: str
    systems: tuple[str, ...]
    count: int
    rates: tuple[float, ...]
    parts: tuple[float, ...]
    concurrency: tuple[int, ...]
    repeats: int
    pool: int
    seed: int = 0

    def trace(self, load: Load) -> list[Session]:
        """The sessions; of a closed load, the same without arrivals."""
        draw = text_sessions if self.shape.kind == TEXT else sessions
        return draw(self.shape, load.rate or ALL_AT_ONCE, self.count, self.seed)

    def starts(self) -> list[tuple[int, str]]:
        """The systems as they are started, by repeats; each comes first in its turn."""
        starts = []
        for repeat in range(self.repeats):
            turn = repeat % len(self.systems)
            starts += [(repeat, name) for name in (*self.systems[turn:], *self.systems[:turn])]
        return starts

    def loads(self) -> list[Load]:
        """What each system gets, as far as it is known before the first run."""
        first = [Load()] if self.parts else []
        rates = [Load(rate=rate) for rate in sorted(set(self.rates))]
        return [*first, *rates, *(Load(concurrent=number) for number in self.concurrency)]

    def chosen(self, first: dict[str, Any]) -> list[Load]:
        """The rates that `parts` mean, by the run in which all sessions came at once.

        Raises LaunchError if not one of them went through.
        """
        if not first["sessions"]:
            raise LaunchError(f"{self.systems[0]} does not work: {first['failures'][0]}")
        rates = {float(f"{part * first['sessions_per_s']:.2g}") for part in self.parts}
        return [Load(rate=rate) for rate in sorted(rates)]

    def check(self) -> None:
        """Refuse a trace that no worker can hold.

        Raises UsageError, which says what to change.
        """
        if unknown := set(self.systems) - set(SYSTEMS):
            raise UsageError(f"no system {sorted(unknown)[0]!r}: choose from {', '.join(SYSTEMS)}")
        if self.count < 1 or self.repeats < 1 or min(self.concurrency, default=1) < 1:
            raise UsageError("sessions, repeats and concurrency must be at least 1")
        if not (self.parts or self.rates or self.concurrency):
            raise UsageError("no loads: give --parts, --rates or --concurrency")
        if (least := min((*self.rates, *self.parts), default=1.0)) <= 0:
            raise UsageError(f"a rate or a part of one is {least:g}, must be above 0")
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


def run_study(study: Study, on_progress: OnProgress, *, step_costs: bool) -> dict[str, Any]:
    """Measure everything; the result is plain JSON.

    `step_costs`: in each repeat, before its first system, also what steps cost then. A machine
    that is shared with others is a tenth slower at one hour than at another.

    Raises UsageError before anything is started, and LaunchError if a system does not start or
    takes no session at all.
    """
    study.check()
    models = checkpoints(study.model, study.shape.decoders)
    starts = study.starts()
    pace = Pace([name for _, name in starts], study.count, study.repeats if step_costs else 0)
    on_progress(f"{len(starts)} starts of some 30 s; what the loads take is told after the first")
    loads = study.loads()
    runs: list[dict[str, Any]] = []
    steps: list[Found] = []
    for repeat, name in starts:
        if step_costs and repeat == len(steps):
            on_progress("measuring what steps cost")
            began = time.monotonic()
            steps.append(measure_apart(study.model, on_progress=on_progress))
            pace.step_costs_took(time.monotonic() - began)
        began = time.monotonic()
        on_progress(f"starting {name}")
        with _started(name, study, models) as running:
            pace.started(time.monotonic() - began)
            done = 0
            while done < len(loads):
                load = loads[done]
                began = time.monotonic()
                figures = measure(running, study, models, load, _progress(on_progress, name, load))
                pace.took(name, load, time.monotonic() - began, figures["sessions_per_s"])
                runs.append({"system": name, "repeat": repeat, "load": asdict(load), **figures})
                on_progress(line(name, load, figures))
                if len(runs) == 1 and study.parts:
                    loads += study.chosen(figures)
                done += 1
                left = pace.left(name, loads[done:], loads)
                on_progress(f"  about {left / 60:.1f} minutes left")
    figures = {"study": asdict(study), "work": amounts(study.trace(Load())), "runs": runs}
    return {**figures, "steps": _costs(steps)} if steps else figures


def _costs(steps: Sequence[Found]) -> dict[str, Any]:
    """Of all times at which they were measured."""
    together = Found()
    for sample in steps:
        together.add(sample)
    return costs(together)


def measure(
    running: Running,
    study: Study,
    models: Checkpoints,
    load: Load,
    on_progress: OnProgress = lambda line: None,
) -> dict[str, Any]:
    """One run of the trace from empty caches."""
    return run.measure(running, study.trace(load), load, _converse(study, models), on_progress)


def _converse(study: Study, models: Checkpoints) -> run.Converse:
    return lambda session: Conversation(session, study.seed, models.vocabulary, models.first)


def line(name: str, load: Load, figures: dict[str, Any]) -> str:
    """A run for people."""
    turn = figures["turn_s"]
    if not turn:
        return f"{name:<13} {load!s:>18}: nothing went through; {figures['failures'][0]}"
    return (
        f"{name:<13} {load!s:>18}: {figures['output_tokens_per_s']:6.1f} tokens/s out, turn p50 "
        f"{turn['p50']:.2f} p95 {turn['p95']:.2f} p99 {turn['p99']:.2f} s, first token p50 "
        f"{figures['first_token_s']['p50']:.2f} s, hit {figures['hit_ratio']:.1%}, "
        f"{figures['prefilled_tokens']} prefilled, {len(figures['failures'])} failed"
        f"{_stages(figures['stages_s'])}"
    )


def _stages(stages: dict[str, dict[str, float]]) -> str:
    if not stages:
        return ""
    texts = (f"{name} {s['mean'] * 1000:.0f}/{s['p95'] * 1000:.0f}" for name, s in stages.items())
    return "\n" + " " * 12 + "mean/p95 ms: " + ", ".join(texts)


def _progress(on_progress: OnProgress, name: str, load: Load) -> OnProgress:
    """Says how far a run is, every few seconds."""
    tell = seldom(on_progress)
    return lambda progress: tell(f"  {name}, {load}: {progress}")


@contextmanager
def _started(name: str, study: Study, models: Checkpoints) -> Iterator[Running]:
    with (
        tempfile.TemporaryDirectory() as logs,
        SYSTEMS[name](models, study.pool, Path(logs)) as running,
    ):
        short = replace(study, shape=replace(study.shape, pause=0.0), count=1)
        run.warm_up(name, running, short.trace(Load()), _converse(study, models))
        yield running
