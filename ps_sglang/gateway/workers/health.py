"""Which workers can be relied on: asks them, learns from their requests, keeps their breakers.

Two questions are asked of each worker. `/ready` is cheap and asked all the time; it finds a server
that died, hangs or was stopped. `/health` has SGLang's scheduler answer; it is asked of a worker
that has unfinished requests, seldom, and of a broken one before it gets a request again. A broken
worker gets no requests (see `breaker`). Those it has already are taken from it once it has been
silent for long: a connection to a stopped process stays open for ever, and so would they.

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
from typing import Final

import aiohttp

from ps_sglang.gateway.dispatch.background import cancel
from ps_sglang.gateway.dispatch.pd_request import PrefillDecodeRequest
from ps_sglang.gateway.errors import Loss, WorkerError, WorkerUnreachable, is_own
from ps_sglang.gateway.routing.pool import AnyWorkerState, BreakerState, WorkerPool
from ps_sglang.gateway.workers.breaker import Breaker
from ps_sglang.gateway.workers.recognition import UNHEARD, Recognition
from ps_sglang.worker_info import HEADER

log = logging.getLogger("ps_sglang.gateway")

Interrupt = Callable[[WorkerError, Callable[[PrefillDecodeRequest], bool]], int]
"""Ends the running samples that the function picks with the error; returns how many."""


@dataclass(frozen=True)
class ProbeTiming:
    """How often workers are asked, and how long they may take, in seconds.

    `silence` without an answer from the server, or `engine_silence` without one from the engine,
    takes a worker's unfinished requests away. The second must be longer than any forward pass:
    between the chunks of a long prompt the engine answers, inside one it does not.
    """

    every: float = 1.0
    starting_every: float = 0.1  # before it has been heard for the first time
    deadline: float = 2.0
    silence: float = 15.0
    engine_every: float = 15.0
    engine_deadline: float = 25.0  # SGLang itself gives up after 20
    engine_silence: float = 120.0


USUAL: Final = ProbeTiming()


@dataclass(frozen=True)
class _Problem:
    """Why a question was not answered well. `silent`: not at all, before the deadline."""

    text: str
    silent: bool = False
    refused: bool = False
    own: bool = False  # the question could not be asked: it says nothing of the worker


@dataclass
class _Record:
    """What is known of one member."""

    breaker: Breaker
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    silent_since: float | None = None
    engine_silent_since: float | None = None
    seen: str | None = None  # the incarnation that answered last
    looked: asyncio.Event = field(default_factory=asyncio.Event)  # it was asked once


class HealthMonitor:
    """Watches every member of a pool and sets its `health` and `problem`."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        pool: WorkerPool,
        timing: ProbeTiming,
        capacity: int,
        clock: Callable[[], float] = time.monotonic,
        randomly: Callable[[], float] = random.random,
    ) -> None:
        """A worker that comes back must hold requests of `capacity` tokens, as one that joins."""
        self.recognition = Recognition(
            session, timing.engine_deadline, capacity, self._suspect, self._restarted
        )
        self.broken: Counter[str] = Counter()
        """How often each worker was found broken."""
        self._session = session
        self._pool = pool
        self._timing = timing
        self._clock = clock
        self._random = randomly
        self._records: dict[AnyWorkerState, _Record] = {}
        self._busy: set[AnyWorkerState] = set()
        self._interrupt: Interrupt | None = None

    def start(self, interrupt: Interrupt) -> None:
        """Watch all members, and those that join, from now on. `close` must be called."""
        self._interrupt = interrupt
        for worker_state in self._pool:
            self._watch(worker_state)
        self._pool.joined.append(self._watch)
        self._pool.left.append(self._forget)

    async def first_look(self) -> None:
        """Wait until those workers that are there already are known."""
        looks = [record.looked.wait() for record in self._records.values()]
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*looks), self._timing.deadline)

    async def close(self) -> None:
        """Stop watching."""
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
        """End what the worker has unfinished; what has sent nothing yet goes to another.

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

    def _watch(self, worker_state: AnyWorkerState) -> None:
        record = self._records[worker_state] = _Record(Breaker(self._clock, self._random))
        self.recognition.meet(worker_state)
        for work in (
            self._ask_server(worker_state, record),
            self._ask_engine(worker_state, record),
        ):
            record.tasks.append(asyncio.create_task(work))

    def _forget(self, worker_state: AnyWorkerState) -> None:
        self.recognition.forget(worker_state)
        for task in self._records.pop(worker_state).tasks:
            task.cancel()

    async def _ask_server(self, worker_state: AnyWorkerState, record: _Record) -> None:
        # Not all at once: a start, or a spell of load, would keep them in step for ever.
        if worker_state.facts is not None:
            await asyncio.sleep(self._timing.every * self._random())
        while True:
            began = self._clock()
            problem = await self._ask(worker_state, "/ready", self._timing.deadline, record)
            silent = problem is not None and problem.silent
            if problem is None and not await self.recognition.is_known(worker_state, record.seen):
                problem = _Problem(worker_state.refused or UNHEARD)
            # One that was refused its connections is asked all the time, to see who comes back;
            # whether it gets a request again is for its breaker to say.
            elif problem is not None or not record.breaker.seconds_to_retry:
                known = record.breaker.has_answered
                if problem is None and known and record.breaker.health is BreakerState.OPEN:
                    problem = await self._ask(worker_state, "/health", self._timing.engine_deadline)
                self._note(record, problem)
            self._show(worker_state, record)
            record.silent_since = _since(record.silent_since, began, silent)
            if problem is not None and self._too_long(record.silent_since, self._timing.silence):
                self._take_requests(worker_state, problem)
            record.looked.set()
            starting = worker_state.unheard and worker_state.facts is None
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

    async def _ask_engine(self, worker_state: AnyWorkerState, record: _Record) -> None:
        while True:
            await asyncio.sleep(self._timing.engine_every)
            broken = record.breaker.health is BreakerState.OPEN
            if broken or worker_state in self._busy or worker_state.load.requests == 0:
                record.engine_silent_since = None
                continue
            began = self._clock()
            problem = await self._ask(worker_state, "/health", self._timing.engine_deadline)
            if (
                worker_state in self._busy
            ):  # it fell silent for a good reason, with the question under way
                record.engine_silent_since = None
                continue
            silent = problem is not None and not (problem.refused or problem.own)
            record.engine_silent_since = _since(record.engine_silent_since, began, silent)
            limit = self._timing.engine_silence
            if problem is not None and self._too_long(record.engine_silent_since, limit):
                record.breaker.unreachable(problem.text)
                self._show(worker_state, record)
                self._take_requests(worker_state, problem)

    async def _ask(
        self,
        worker_state: AnyWorkerState,
        path: str,
        deadline: float,
        record: _Record | None = None,
    ) -> _Problem | None:
        """Ask; notes in `record` who answered."""
        timeout = aiohttp.ClientTimeout(total=deadline)
        try:
            async with self._session.get(
                worker_state.worker.url + path, timeout=timeout
            ) as response:
                if record is not None:
                    record.seen = response.headers.get(HEADER)
                if response.status == 200:
                    return None
                return _Problem(f"it answers {path} with status {response.status}")
        except TimeoutError:
            return _Problem(f"it did not answer {path} within {deadline:g} s", silent=True)
        except (aiohttp.ClientError, OSError) as error:
            if is_own(error):
                return _Problem(str(error), own=True)
            return _Problem(str(error) or type(error).__name__, refused=True)

    def _note(self, record: _Record, problem: _Problem | None) -> None:
        if problem is not None and problem.own:
            return
        if problem is None:
            record.breaker.probe_succeeded()
        elif problem.refused:
            record.breaker.unreachable(problem.text)
        else:
            record.breaker.probe_missed(problem.text)

    def _show(self, worker_state: AnyWorkerState, record: _Record) -> None:
        """Bring what the breaker says to the pool, and to people."""
        before, now = worker_state.health, record.breaker.health
        worker_state.health = now
        worker_state.problem = worker_state.refused or record.breaker.reason or None
        if worker_state.facts is None:  # a worker that is starting cannot break
            worker_state.problem = worker_state.problem or UNHEARD
            return
        if now is before:
            return
        if not record.breaker.has_answered:
            log.info("%s does not answer yet: %s", worker_state.worker.title, worker_state.problem)
        elif now is BreakerState.OPEN:
            self.broken[worker_state.name] += 1
            log.warning("%s is broken: %s", worker_state.worker.title, worker_state.problem)
        else:
            log.info("%s is %s", worker_state.worker.title, _SAID[now])

    def _too_long(self, since: float | None, limit: float) -> bool:
        return since is not None and self._clock() - since >= limit

    def _take_requests(self, worker_state: AnyWorkerState, problem: _Problem) -> None:
        if count := self.take_requests_from(worker_state, problem.text, Loss.TAKEN):
            log.warning("%s is silent; took %d requests from it", worker_state.worker.title, count)


_SAID = {
    BreakerState.HALF_OPEN: "on trial: it gets one request at a time",
    BreakerState.CLOSED: "good again",
}


def _since(before: float | None, began: float, silent: bool) -> float | None:
    """Since when a worker has been silent, given the outcome of a question asked at `began`."""
    if not silent:
        return None
    return began if before is None else before
