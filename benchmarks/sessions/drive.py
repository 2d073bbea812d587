"""Runs sessions: they arrive on their own, and each one's turns follow each other.

What a decoder says becomes part of its session's context, as an agent's does. Lengths are those of
the workload whatever is said, so every system is asked for the same work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

from benchmarks.sessions.client import Answer, TurnFailed
from benchmarks.sessions.workload import Conversation, Session
from ps_sglang.progress import OnProgress


@dataclass(frozen=True)
class Load:
    """How sessions come: `rate` a second (open), `concurrent` at any time (closed), or at once."""

    rate: float | None = None
    concurrent: int | None = None

    def __str__(self) -> str:
        if self.rate is not None:
            return f"{self.rate:.3g} sessions/s"
        return "all at once" if self.concurrent is None else f"{self.concurrent} at a time"


@dataclass(frozen=True)
class TurnDone:
    """A turn as it went; times in seconds from the beginning of the run, `stages` see Answer."""

    session: int
    decoder: int
    prompt: int
    output: int
    asked: float
    first: float
    done: float
    stages: dict[str, float] = field(default_factory=dict)


@dataclass
class Run:
    """All that happened. `sessions`: (arrival, end) of those that went through."""

    turns: list[TurnDone] = field(default_factory=list)
    sessions: list[tuple[float, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Asks(Protocol):
    """What asks a decoder."""

    async def __call__(self, decoder: int, prompt: Sequence[int], output: int) -> Answer: ...


async def drive(
    trace: Sequence[Session],
    load: Load,
    conversation: Callable[[Session], Conversation],
    ask: Asks,
    on_progress: OnProgress = lambda line: None,
) -> Run:
    """Run the trace to its end; a session that fails goes no further, the others go on."""
    run, began = Run(), perf_counter()
    places = asyncio.Semaphore(load.concurrent) if load.concurrent is not None else None

    def tell() -> None:
        on_progress(f"{len(run.sessions)} of {len(trace)} sessions, {len(run.turns)} turns")

    async def one(session: Session) -> None:
        async with AsyncExitStack() as stack:
            if places is None:
                await _sleep_until(began + session.start)
                arrived = began + session.start
            else:
                await stack.enter_async_context(places)
                arrived = perf_counter()
            try:
                await _session(session, conversation(session), ask, began, run, tell)
            except (TurnFailed, ValueError) as error:
                run.failures.append(f"session {session.number}: {error}")
            else:
                run.sessions.append((arrived - began, perf_counter() - began))

    async with asyncio.TaskGroup() as group:
        for session in trace:
            group.create_task(one(session))
    run.seconds = perf_counter() - began
    return run


async def _session(
    session: Session, conversation: Conversation, ask: Asks, began: float, run: Run,
    tell: Callable[[], None],
) -> None:  # fmt: skip
    for turn in session.turns:
        await asyncio.sleep(turn.pause)
        prompt = conversation.ask()
        answer = await ask(turn.decoder, prompt, turn.output)
        conversation.answered(answer.ids)
        run.turns.append(
            TurnDone(
                session.number,
                turn.decoder,
                len(prompt),
                turn.output,
                answer.asked - began,
                answer.first - began,
                answer.done - began,
                answer.stages,
            )
        )
        tell()


async def _sleep_until(moment: float) -> None:
    await asyncio.sleep(max(0.0, moment - perf_counter()))
