"""A worker as the gateway sees it: its state and its unfinished work.

A WorkerState lasts from a worker's joining to its leaving: one that comes back under its old name
has another, so nothing can be counted on the wrong one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.gateway.config import DecodeWorker, PrefillWorker, Worker
from ps_sglang.worker_info import HEADER, WorkerInfo


class BreakerState(Enum):
    """What the circuit breaker says of a worker."""

    CLOSED = "good"
    HALF_OPEN = "trial"  # half-open: gets one request at a time, to see whether it answers again
    OPEN = "broken"  # open: gets requests only where there is no other worker


@dataclass(slots=True)
class Load:
    """Unfinished work of one worker, and how often it was chosen.

    `requests` have not ended. `queued_tokens` are new tokens of prompts that a prefill worker has
    not yet prefilled. `moving_tokens` are the tokens of pages that are yet to arrive at a decode
    worker. `recent_tokens` is what a prefill worker has computed of late, by its own word if
    its events are live, as it stood at `recent_at`, a monotonic time.
    """

    requests: int = 0
    queued_tokens: int = 0
    moving_tokens: int = 0
    chosen: int = 0
    recent_tokens: float = 0.0
    recent_at: float = 0.0


W = TypeVar("W", bound=Worker)


@dataclass(eq=False, slots=True)
class WorkerState(Generic[W]):
    """A worker in the pool.

    `facts` are the WorkerInfo with which it was admitted, and `incarnation` is the process that
    requests are for. `unheard`: the process at its address is not identified yet. `refused`
    says why that one is not this worker, if it is not.
    `draining`: it finishes what it has and gets nothing new (it leaves, or is being swapped).
    `problem` says why it is not good, for people. `changing` is held while its adapters change.
    `host` is where it runs, as its URL says. `key` is the cluster's, None without one.
    """

    worker: W
    facts: WorkerInfo | None = None
    key: ClusterKey | None = field(default=None, repr=False)
    incarnation: str | None = field(init=False)
    unheard: bool = False
    refused: str | None = None
    breaker: BreakerState = BreakerState.CLOSED
    draining: bool = False
    problem: str | None = None
    load: Load = field(default_factory=Load)
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    host: str = field(init=False)
    _idle: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    def __post_init__(self) -> None:
        self.incarnation = None if self.facts is None else self.facts.incarnation
        self.host = urlsplit(self.worker.url).hostname or ""

    @property
    def name(self) -> str:
        """The worker's name, unique in the pool."""
        return self.worker.name

    @property
    def state(self) -> str:
        """`draining`, `refused`, `starting`, or else its health: `good`, `trial` or `broken`."""
        if self.draining:
            return "draining"
        if self.refused is not None:
            return "refused"
        return "starting" if self.unheard else self.breaker.value

    @property
    def is_starting(self) -> bool:
        """Whether nobody has answered as this worker yet."""
        return self.facts is None

    @property
    def headers(self) -> dict[str, str]:
        """What a request carries so that this process answers it, and no other."""
        if self.incarnation is None:
            return {}
        named = {HEADER: self.incarnation}
        return named if self.key is None else named | self.key.request_headers(self.incarnation)

    @property
    def can_be_asked(self) -> bool:
        """Whether a request may go here if there is no better worker."""
        return not (self.draining or self.unheard or self.refused)

    @property
    def is_ready(self) -> bool:
        """Whether requests can be served here, as far as is known."""
        return self.can_be_asked and self.breaker is not BreakerState.OPEN

    @property
    def takes_requests(self) -> bool:
        """Whether a new request may go here as long as any other may."""
        # Not by `is_ready`, as each choice asks this of every worker.
        if self.draining or self.unheard or self.refused:
            return False
        breaker = self.breaker
        return breaker is BreakerState.CLOSED or (
            breaker is BreakerState.HALF_OPEN and self.load.requests == 0
        )

    def begin(self) -> None:
        """A request was sent here."""
        self.load.requests += 1
        self.load.chosen += 1
        self._idle.clear()

    def end(self) -> None:
        """A request that began here has ended."""
        self.load.requests -= 1
        if self.load.requests == 0:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until no request is unfinished here; at once if none is."""
        while self.load.requests:
            await self._idle.wait()


Prefill = WorkerState[PrefillWorker]
Decode = WorkerState[DecodeWorker]
AnyWorkerState = Prefill | Decode
