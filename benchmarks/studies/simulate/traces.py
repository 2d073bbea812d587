"""Sessions for studies beyond those of the agents benchmark."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from benchmarks.sessions.workload import Session, Shape, sessions

SEED: Final = 1
TEAM: Final = 4
"""Decoders that take turns in a session, however many there are."""


def teams(trace: Sequence[Session], decoders: int) -> list[Session]:
    """Sessions of TEAM decoders each, spread over all `decoders`."""
    return [
        replace(
            session,
            turns=tuple(
                replace(turn, decoder=(turn.decoder + TEAM * session.number) % decoders)
                for turn in session.turns
            ),
        )
        for session in trace
    ]


def shuffled(trace: Sequence[Session], decoders: int) -> list[Session]:
    """The same sessions with every turn's decoder drawn by chance instead of going round."""
    drawn = []
    for session in trace:
        source = random.Random(f"order {SEED} {session.number}")
        turns = (replace(turn, decoder=source.randrange(decoders)) for turn in session.turns)
        drawn.append(replace(session, turns=tuple(turns)))
    return drawn


def interrupted(rate: float, count: int, pause: float, decoders: int) -> list[Session]:
    """Sessions of two turns by two decoders with a long pause (mean, exponential) between."""
    shape = Shape(steps=2, pause=pause, task_tokens=(200, 800))
    trace = []
    for session in sessions(shape, rate, count, SEED):
        first, second = session.turns[0], session.turns[2]
        places = (session.number % decoders, (session.number + 1) % decoders)
        turns = tuple(
            replace(turn, decoder=place)
            for turn, place in zip((first, second), places, strict=True)
        )
        trace.append(replace(session, turns=turns))
    return trace
