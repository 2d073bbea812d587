"""The workers that the gateway knows now: their state and their unfinished work.

The configuration gives the first ones; others join and leave at run time. Everything here belongs
to the thread of the event loop. A WorkerState lasts from a worker's joining to its leaving: one
that comes back under its old name has another, so nothing can be counted on the wrong one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from ps_sglang.gateway.config import DecodeWorker, PrefillWorker, Worker
from ps_sglang.gateway.errors import NoWorker
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
    `problem` says why it is not good, for people. `host` is where it runs, as its URL says.
    """

    worker: W
    facts: WorkerInfo | None = None
    incarnation: str | None = field(init=False)
    unheard: bool = False
    refused: str | None = None
    breaker: BreakerState = BreakerState.CLOSED
    draining: bool = False
    problem: str | None = None
    load: Load = field(default_factory=Load)
    host: str = field(init=False)
    _idle: list[asyncio.Future[None]] = field(default_factory=list, repr=False)

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
        """What a request carries so that no other process answers it."""
        return {} if self.incarnation is None else {HEADER: self.incarnation}

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
        return self.is_ready and (self.breaker is BreakerState.CLOSED or self.load.requests == 0)

    def begin(self) -> None:
        """A request was sent here."""
        self.load.requests += 1
        self.load.chosen += 1

    def end(self) -> None:
        """A request that began here has ended."""
        self.load.requests -= 1
        if self.load.requests == 0:
            waiting, self._idle = self._idle, []
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_result(None)

    async def wait_idle(self) -> None:
        """Wait until no request is unfinished here; at once if none is."""
        while self.load.requests:
            ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(ended)
            await ended


Prefill = WorkerState[PrefillWorker]
Decode = WorkerState[DecodeWorker]
AnyWorkerState = Prefill | Decode


class WorkerPool:
    """The workers by name and by role, in the order in which they joined.

    Register functions in `joined` and `left` to be called with workers that come and go.
    """

    def __init__(self, workers: Iterable[Worker] = ()) -> None:
        self.joined: list[Callable[[AnyWorkerState], None]] = []
        self.left: list[Callable[[AnyWorkerState], None]] = []
        self._worker_states: dict[str, AnyWorkerState] = {}
        self._prefill: tuple[Prefill, ...] = ()
        self._decode: dict[str, tuple[Decode, ...]] = {}
        for worker in workers:
            self.add(worker)

    def __iter__(self) -> Iterator[AnyWorkerState]:
        return iter((*self._prefill, *(one for group in self._decode.values() for one in group)))

    def __len__(self) -> int:
        return len(self._worker_states)

    def requests(self) -> tuple[int, int]:
        """Workers' unfinished requests, and all that the workers here now have had."""
        loads = [worker_state.load for worker_state in self._worker_states.values()]
        return sum(load.requests for load in loads), sum(load.chosen for load in loads)

    def get(self, name: str) -> AnyWorkerState | None:
        """The worker of that name, if there is one."""
        return self._worker_states.get(name)

    @property
    def prefill(self) -> tuple[Prefill, ...]:
        """All prefill workers."""
        return self._prefill

    @property
    def decoders(self) -> tuple[str, ...]:
        """The decoders that have at least one worker, in whatever state."""
        return tuple(self._decode)

    def decode(self, decoder: str | None = None) -> tuple[Decode, ...]:
        """The decode workers of one decoder, or all of them."""
        if decoder is not None:
            return self._decode.get(decoder, ())
        return tuple(one for group in self._decode.values() for one in group)

    def add(self, worker: Worker, facts: WorkerInfo | None = None) -> AnyWorkerState:
        """A worker joins, with its WorkerInfo; raises ValueError if its name is taken."""
        if worker.name in self._worker_states:
            raise ValueError(f"there is a worker {worker.name!r} already")
        worker_state: AnyWorkerState
        if isinstance(worker, PrefillWorker):
            worker_state = WorkerState(worker, facts)
            self._prefill = (*self._prefill, worker_state)
        else:
            worker_state = WorkerState(worker, facts)
            self._decode[worker.decoder] = (*self.decode(worker.decoder), worker_state)
        self._worker_states[worker.name] = worker_state
        for listener in self.joined:
            listener(worker_state)
        return worker_state

    def remove(self, name: str) -> AnyWorkerState:
        """A worker leaves, whatever it still works on; raises KeyError if there is none."""
        worker_state = self._worker_states.pop(name)
        self._prefill = tuple(one for one in self._prefill if one is not worker_state)
        for decoder, group in list(self._decode.items()):
            self._decode[decoder] = tuple(one for one in group if one is not worker_state)
            if not self._decode[decoder]:
                del self._decode[decoder]
        for listener in self.left:
            listener(worker_state)
        return worker_state

    def prefill_candidates(self, tried: Collection[str] = ()) -> Sequence[Prefill]:
        """The prefill workers that a request may go to; raises NoWorker if there is none."""
        return _candidates(self._prefill, tried, "prefill worker")

    def decode_candidates(self, decoder: str, tried: Collection[str] = ()) -> Sequence[Decode]:
        """The decode workers of `decoder` that a request may go to; raises NoWorker."""
        return _candidates(self.decode(decoder), tried, f"decode worker of {decoder!r}")


def _candidates(
    worker_states: Sequence[WorkerState[W]], tried: Collection[str], title: str
) -> Sequence[WorkerState[W]]:
    """Those that take requests, else broken ones; never one that was tried or cannot be asked."""
    good = [one for one in worker_states if one.takes_requests and one.name not in tried]
    if good:
        return good
    left = [one for one in worker_states if one.can_be_asked and one.name not in tried]
    if left:
        return left
    states = ", ".join(
        f"{one.name} is {'not answering' if one.name in tried else one.state}"
        + (f" ({one.refused})" if one.refused else "")
        for one in worker_states
    )
    raise NoWorker(f"No {title} is available: {states or 'there is none'}.")
