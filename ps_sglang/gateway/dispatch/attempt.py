"""A sample on its way through one attempt after another."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from ps_sglang.gateway.bodies.samples import Sample
from ps_sglang.gateway.dispatch.poison import Suspect, Turn
from ps_sglang.gateway.dispatch.worker_sender import RequestContext
from ps_sglang.gateway.telemetry.trace import Trace


@dataclass
class Job:
    """A sample on its way. `gate` is set once its prompt is prefilled.

    `tried` are the workers, by name, on which it shall not be any more, and `had` the output tokens
    of a stream that has begun.
    """

    context: RequestContext
    suspect: Suspect
    sample: Sample
    gate: asyncio.Event
    tried: set[str] = field(default_factory=set)
    had: Sequence[int] = ()


@dataclass
class Attempt:
    """What belongs to an attempt that runs; `turn` is that of a suspect which goes on there."""

    trace: Trace
    suspect: Suspect
    turn: Turn | None = None

    def end_turn(self) -> None:
        """The next suspect may come. May be called more than once."""
        if self.turn is not None:
            self.turn.release()
