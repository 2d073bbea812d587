"""Which workers can be relied on: probes them, learns from their requests, keeps their breakers.

There are two probes. `/ready` is cheap and sent all the time; it finds a server that died, hangs or
was stopped. `/health` has SGLang's scheduler answer; it is sent seldom to a worker that has
unfinished requests, and to one whose breaker is open before it gets a request again. A worker whose
breaker is open gets no requests (see `breaker`). Those it has already are taken from it once it has
been silent for long: a connection to a stopped process stays open for ever, and so would they.

Every answer names the process that gives it; whether that is the worker is asked in `recognition`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import aiohttp

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.gateway.dispatch.background import cancel
from ps_sglang.gateway.dispatch.pd_request import PrefillDecodeRequest
from ps_sglang.gateway.errors import Loss, WorkerError, WorkerUnreachable
from ps_sglang.gateway.routing.pool import WorkerPool
from ps_sglang.gateway.routing.worker_state import AnyWorkerState, BreakerState
from ps_sglang.gateway.workers.breaker import Breaker
from ps_sglang.gateway.workers.probe import ProbeResult, ProbeTiming, Problem, probe
from ps_sglang.gateway.workers.recognition import UNHEARD, Recognition, Restore

log = logging.getLogger("ps_sglang.gateway")

Interrupt = Callable[[WorkerError, Callable[[PrefillDecodeRequest], bool]], int]
"""Ends the running samples that the function picks with the error; returns how many."""


@dataclass
class _Record:
    """What is known of one worker."""

    breaker: Breaker
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    silent_since: float | None = None
    engine_silent_since: float | None = None
    was_probed: asyncio.Event = field(default_factory=asyncio.Event)  # it was probed once


class HealthMonitor:
    """Probes every worker of a pool and sets its `breaker` and `problem`."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        pool: WorkerPool,
        timing: ProbeTiming,
        capacity: int,
        clock: Callable[[], float] = time.monotonic,
        randomly: Callable[[], float] = random.random,
        *,
        key: ClusterKey | None,
        restore: Restore,
    ) -> None:
        """A worker that comes back must hold requests of `capacity` tokens, as one that joins.

        `restore` gives it what it had before, see Recognition.
        """
        self.recognition = Recognition(
            http,
            pool,
            key,
            timing.engine_deadline,
            capacity,
            self._suspect,
            restore,
            self._restarted,
        )
        self.transitions: Counter[tuple[str, BreakerState]] = Counter()
        """How often each worker's breaker went into a state."""
        self._http = http
        self._key = key
        self._pool = pool
        self._timing = timing
        self._clock = clock
        self._random = randomly
        self._records: dict[AnyWorkerState, _Record] = {}
        self._busy: set[AnyWorkerState] = set()
        self._interrupt: Interrupt | None = None

    def start(self, interrupt: Interrupt) -> None:
        """Probe all workers, and those that join, from now on. `close` must be called."""
        self._interrupt = interrupt
        for worker_state in self._pool:
            self._watch(worker_state)
        self._pool.joined.append(self._watch)
        self._pool.left.append(self._forget)

    async def first_probes(self) -> None:
        """Wait until every worker was probed once, or for one deadline."""
        probed = [record.was_probed.wait() for record in self._records.values()]
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*probed), self._timing.deadline)

    async def close(self) -> None:
        """Stop probing."""
        self._pool.joined.remove(self._watch)
        self._pool.left.remove(self._forget)
        await cancel(*(task for record in self._records.values() for task in record.tasks))
        self._records.clear()

    def succeeded(self, worker_state: AnyWorkerState) -> None:
        """The worker did its part of a request, or began to answer."""
        if (record := self._records.get(worker_state)) is not None:
            record.breaker.request_succeeded()
            self._show(worker_state, record)

    def failed(self, worker_state: AnyWorkerState, error: WorkerError) -> None:
        """The worker could not be reached (WorkerUnreachable), or failed where another did not."""
        if (record := self._records.get(worker_state)) is None:
            return
        if isinstance(error, WorkerUnreachable):
            record.breaker.unreachable(error.message)
        else:
            record.breaker.request_failed(error.message)
        self._show(worker_state, record)

    def take_requests_from(
        self, worker_state: AnyWorkerState, reason: str, loss: Loss = Loss.NOT_TAKEN
    ) -> int:
        """End what the worker has unfinished, which goes to another where it can.

        `reason` completes "worker x is unreachable: ...". Returns how many requests it had.
        """
        assert self._interrupt is not None, "start() comes first"
        error = WorkerUnreachable(worker_state.worker, reason, loss)
        return self._interrupt(error, lambda pd_request: pd_request.route.needs(worker_state))

    @contextmanager
    def engine_busy(self, worker_state: AnyWorkerState) -> Iterator[None]:
        """In this block the worker's engine may be silent: it loads weights."""
        self._busy.add(worker_state)
        try:
            yield
        finally:
            self._busy.discard(worker_state)

    def is_engine_busy(self, worker_state: AnyWorkerState) -> bool:
        """Whether the worker is in such a block."""
        return worker_state in self._busy

    def _watch(self, worker_state: AnyWorkerState) -> None:
        record = self._records[worker_state] = _Record(Breaker(self._clock, self._random))
        self.recognition.meet(worker_state)
        for work in (
            self._probe_server(worker_state, record),
            self._probe_engine(worker_state, record),
        ):
            record.tasks.append(asyncio.create_task(work))

    def _forget(self, worker_state: AnyWorkerState) -> None:
        self.recognition.forget(worker_state)
        for task in self._records.pop(worker_state).tasks:
            task.cancel()

    async def _probe_server(self, worker_state: AnyWorkerState, record: _Record) -> None:
        # Not all at once: a start, or a spell of load, would keep them in step for ever.
        if not worker_state.is_starting:
            await asyncio.sleep(self._timing.every * self._random())
        while True:
            began = self._clock()
            found = await self._probe(worker_state, "/ready", self._timing.deadline)
            problem = found.problem
            silent = problem is not None and problem.silent
            answered = problem is None or not found.is_proven
            if answered and not await self.recognition.is_known(worker_state, found):
                problem = Problem(worker_state.refused or UNHEARD)
            # One that refuses connections is probed all the time, to see who comes back; whether
            # it gets a request again is for its breaker to say. One that starts cannot break.
            elif not worker_state.is_starting and (
                problem is not None or not record.breaker.seconds_to_retry
            ):
                if problem is None and record.breaker.state is BreakerState.OPEN:
                    found = await self._probe(worker_state, "/health", self._timing.engine_deadline)
                    problem = found.problem
                self._note(record, problem)
            self._show(worker_state, record)
            if worker_state.is_starting and problem is not None:
                worker_state.problem = worker_state.refused or problem.text
            record.silent_since = _since(record.silent_since, began, silent)
            if problem is not None and self._too_long(record.silent_since, self._timing.silence):
                self._take_requests(worker_state, problem)
            record.was_probed.set()
            starting = worker_state.is_starting and worker_state.refused is None
            await asyncio.sleep(self._timing.starting_every if starting else self._timing.every)

    def _suspect(self, worker_state: AnyWorkerState) -> None:
        """Another process answers at the worker's address."""
        reason = "another process answers at its address"
        record = self._records[worker_state]
        record.breaker.unreachable(reason)
        self._show(worker_state, record)
        self.take_requests_from(worker_state, reason)

    def _restarted(self, worker_state: AnyWorkerState) -> None:
        self._records[worker_state].breaker.restarted()

    async def _probe_engine(self, worker_state: AnyWorkerState, record: _Record) -> None:
        while True:
            await asyncio.sleep(self._timing.engine_every)
            is_open = record.breaker.state is BreakerState.OPEN
            if is_open or worker_state in self._busy or worker_state.load.requests == 0:
                record.engine_silent_since = None
                continue
            began = self._clock()
            found = await self._probe(worker_state, "/health", self._timing.engine_deadline)
            problem = found.problem
            if worker_state in self._busy:  # it fell silent for a good reason, during the probe
                record.engine_silent_since = None
                continue
            silent = problem is not None and not (problem.refused or problem.is_own)
            record.engine_silent_since = _since(record.engine_silent_since, began, silent)
            limit = self._timing.engine_silence
            if problem is not None and self._too_long(record.engine_silent_since, limit):
                record.breaker.unreachable(problem.text)
                self._show(worker_state, record)
                self._take_requests(worker_state, problem)

    async def _probe(self, worker_state: AnyWorkerState, path: str, deadline: float) -> ProbeResult:
        url, key = worker_state.worker.url, self._key
        authorization: dict[str, str] = {}
        if key is not None and worker_state.incarnation is not None:
            # Not its name: whoever answers there is to be heard.
            authorization = key.request_headers(worker_state.incarnation)
        return await probe(self._http, url, path, deadline, key, authorization)

    def _note(self, record: _Record, problem: Problem | None) -> None:
        if problem is not None and problem.is_own:
            return
        if problem is None:
            record.breaker.probe_succeeded()
        elif problem.refused:
            record.breaker.unreachable(problem.text)
        else:
            record.breaker.probe_missed(problem.text)

    def _show(self, worker_state: AnyWorkerState, record: _Record) -> None:
        """Bring the breaker's state to the pool and to the log."""
        previous, worker_state.breaker = worker_state.breaker, record.breaker.state
        worker_state.problem = worker_state.refused or record.breaker.reason or None
        if worker_state.breaker is previous:
            return
        title = worker_state.worker.title
        self.transitions[worker_state.name, worker_state.breaker] += 1
        if worker_state.breaker is BreakerState.OPEN:
            log.warning("%s is broken: %s", title, worker_state.problem)
        elif worker_state.breaker is BreakerState.HALF_OPEN:
            log.info("%s is on trial: it gets one request at a time", title)
        else:
            log.info("%s is good again", title)

    def _too_long(self, since: float | None, limit: float) -> bool:
        return since is not None and self._clock() - since >= limit

    def _take_requests(self, worker_state: AnyWorkerState, problem: Problem) -> None:
        if count := self.take_requests_from(worker_state, problem.text, Loss.TAKEN):
            log.warning("%s is silent; took %d requests from it", worker_state.worker.title, count)


def _since(silent_since: float | None, began: float, silent: bool) -> float | None:
    """Since when a worker has been silent, after a probe that was sent at `began`."""
    if not silent:
        return None
    return began if silent_since is None else silent_since
