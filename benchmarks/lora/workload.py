"""The sessions: agents with an adapter each take turns over one growing context.

A planner and an actor in a loop, as ReAct's agents are: each step's observation joins the context,
and each turn is the next adapter's. Prompts are long and answers short. A session begins with the
adapter behind the last one of the session before, so that all adapters are asked equally often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from typing import Final

from benchmarks.sessions.workload import ALL_AT_ONCE, Conversation, Session, Shape, sessions

SHAPE: Final = Shape(
    steps=6, system_tokens=512, task_tokens=(64, 128), observation_tokens=512,
    observation_most=1024, output_tokens=(4, 12), pause=0.1,
)  # fmt: skip
"""The agents study's shape that is heavy in prompts, with shorter contexts: SmolLM2 reads some 500
tokens a second on two cores."""
QUICK: Final = replace(SHAPE, steps=3)
_SHORT: Final = replace(
    SHAPE, steps=1, system_tokens=16, task_tokens=(16, 16), observation_tokens=1,
    observation_most=1, output_tokens=(2, 2), pause=0.0,
)  # fmt: skip
SEED: Final = 0
_IDS: Final = range(1000, 48000)
"""Of SmolLM2's words, without special tokens."""


def trace(shape: Shape, adapters: int, count: int, rate: float | None) -> list[Session]:
    """`count` sessions that arrive at `rate` a second; None is without arrivals."""
    drawn = sessions(replace(shape, decoders=adapters), rate or ALL_AT_ONCE, count, SEED)
    return [_rotated(session, adapters) for session in drawn]


def _rotated(session: Session, adapters: int) -> Session:
    first = session.number * len(session.turns)
    turns = (
        replace(turn, decoder=(first + place) % adapters)
        for place, turn in enumerate(session.turns)
    )
    return replace(session, turns=tuple(turns))


def short_trace(adapters: int) -> list[Session]:
    """Short sessions in which every adapter is asked."""
    return trace(_SHORT, adapters, ceil(adapters / 2), None)


def count_for(adapters: int, at_once: int, turns: int) -> int:
    """How many sessions of so many turns, so that each adapter has two turns at least.

    A multiple of those `at_once`: a rest of few would not keep a system busy.
    """
    return ceil(2 * adapters / turns / at_once) * at_once


def turns_of(shape: Shape) -> int:
    """Of a session."""
    return len(trace(shape, 1, 1, None)[0].turns)


def converse(session: Session) -> Conversation:
    """The session's context."""
    return Conversation(session, SEED, _IDS.stop, _IDS.start)


def longest(traced: Sequence[Session]) -> int:
    """Tokens that a context grows to."""
    return max(length + turn.output for one in traced for turn, length in one.prompts())
