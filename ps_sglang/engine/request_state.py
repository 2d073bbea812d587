"""What the plugin keeps of a request: one object at one attribute of SGLang's `Req`.

Nothing else is set on a request. The module knows no other part of the engine, so each may use it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

Request = Any  # sglang.srt.managers.schedule_batch.Req, which ships no types

_sequence_numbers = count(1)


def next_sequence_number() -> int:
    """A number above those of all requests that this worker has begun."""
    return next(_sequence_numbers)


@dataclass(slots=True)
class Timestamps:
    """Times in a request's life by `time.perf_counter`, SGLang's clock too; 0.0 is "not yet".

    `began`: the scheduler took the request up. `received`: a decode worker has the base prefix.
    `first_output`: its first output token is there. `held`, `pulled` and `pulled_bytes` are as in
    the event stream's Span. `is_published` says that the Span has gone out.
    """

    began: float = field(default_factory=time.perf_counter)
    received: float = 0.0
    first_output: float = 0.0
    held: int = 0
    pulled: int = 0
    pulled_bytes: int = 0
    is_published: bool = False


@dataclass(slots=True)
class FanOutWait:
    """A request's part in the fan-out, see `handoff/fan_out.py`.

    `blocks` are hashes of its prefixes of 1, 2, ... blocks. `waited` are the seconds for which it
    was passed over so far, up to `since`: when it was first passed over (`time.perf_counter`), None
    while it is not.
    """

    blocks: list[int]
    waited: float = 0.0
    since: float | None = None


@dataclass(slots=True)
class HandoffState:
    """The handoff's state of one request.

    `base_prefix_len` counts the tokens of the prompt whose KV is the base's; the request `pulls`
    them if a prefill worker has them. `sequence_number` counts the requests of this worker as they
    begin. `fan_out` is None before the request is compared with others. `prefix_matched` says that
    its prefix was looked up in a long queue. `forced` are output tokens that it must put out first.
    """

    base_prefix_len: int
    pulls: bool = False
    sequence_number: int = field(default_factory=next_sequence_number)
    fan_out: FanOutWait | None = None
    prefix_matched: bool = False
    forced: Sequence[int] = ()
    timestamps: Timestamps = field(default_factory=Timestamps)


def handoff_state(req: Request) -> HandoffState:
    """The state of a request that `Scheduler._create_generation_req` has made."""
    state: HandoffState = req.handoff
    return state


def begin_handoff(req: Request, base_prefix_len: int, *, pulls: bool = False) -> None:
    """Give a new request its state."""
    req.handoff = HandoffState(base_prefix_len, pulls)


def base_prefix_len(req: Request) -> int:
    """Tokens of the request's prompt whose KV is the base's."""
    return handoff_state(req).base_prefix_len


def awaits_first_output(req: Request) -> bool:
    """Whether the next decode step is the one that reads the boundary token."""
    return len(req.output_ids) == 0
