"""How the workers of the owner's pool come to the other processes.

The owner looks at its workers a few times in a second and tells what has changed; what cannot wait
is told at once. A follower has the same workers in the same states, and probes none: what its
requests meet it tells the owner, whose breakers count it.

While there is no owner a follower serves on with the workers that it knows. A new owner knows none:
they join it again, as they join any gateway that has restarted, and those that have not done so
within a lease's time leave here as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Final

from ps_sglang.gateway.config import DecodeWorker, PrefillWorker
from ps_sglang.gateway.dispatch.pd_request import PrefillDecodeRequest
from ps_sglang.gateway.errors import WorkerError, WorkerFailed, WorkerUnreachable
from ps_sglang.gateway.index.cache_index import CacheIndex
from ps_sglang.gateway.peers.messages import (
    AllWorkers,
    Listening,
    Message,
    RequestsTaken,
    WorkerIs,
    WorkerLeft,
    WorkerOutcome,
)
from ps_sglang.gateway.peers.peers import OWNER, GatewayPeers
from ps_sglang.gateway.routing.pool import WorkerPool
from ps_sglang.gateway.routing.worker_state import AnyWorkerState, BreakerState
from ps_sglang.gateway.workers.health import HealthMonitor, Interrupt
from ps_sglang.gateway.workers.leases import SECONDS as LEASE_SECONDS

log = logging.getLogger("ps_sglang.gateway")

LOOK_SECONDS: Final = 0.02


class Owner:
    """Tells the others of the owner's workers; for one process alone it does nothing."""

    def __init__(self, peers: GatewayPeers, pool: WorkerPool, health: HealthMonitor) -> None:
        self._peers = peers
        self._pool = pool
        self._health = health
        self._told: dict[AnyWorkerState, WorkerIs] = {}
        self._port: int | None = None
        if peers.is_alone:
            return
        peers.before_asking = self.look
        peers.greetings.append(self._greet)
        peers.handlers[WorkerOutcome] = self._outcome
        pool.left.append(self._left)

    def listens(self, port: int) -> None:
        """Clients are served on this port."""
        self._port = port
        self._peers.send(Listening(port))

    def interrupting(self, interrupt: Interrupt) -> Interrupt:
        """`interrupt`, here and at the others."""
        if self._peers.is_alone:
            return interrupt

        def everywhere(error: WorkerError, concerns: Callable[[PrefillDecodeRequest], bool]) -> int:
            assert isinstance(error, WorkerUnreachable), "that is why requests are taken"
            self.look()
            self._peers.send(RequestsTaken(error.worker.name, error.reason, error.loss))
            return interrupt(error, concerns)

        return everywhere

    async def watch(self) -> None:
        """Look at the workers for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Tell what has changed since the last time."""
        for worker_state in self._pool:
            now = self._describe(worker_state)
            if self._told.get(worker_state) != now:
                self._told[worker_state] = now
                self._peers.send(now)

    def _left(self, worker_state: AnyWorkerState) -> None:
        self._told.pop(worker_state, None)
        self._peers.send(WorkerLeft(worker_state.name))

    def _greet(self, process: int) -> Iterator[Message]:
        for worker_state in self._pool:
            yield self._describe(worker_state)
        yield AllWorkers()
        if self._port is not None:
            yield Listening(self._port)

    def _describe(self, one: AnyWorkerState) -> WorkerIs:
        worker = one.worker
        return WorkerIs(
            worker if isinstance(worker, PrefillWorker) else None,
            worker if isinstance(worker, DecodeWorker) else None,
            one.facts,
            one.incarnation,
            one.unheard,
            one.refused,
            one.breaker,
            one.draining,
            one.problem,
            {
                served.name: served.problems[one]  # type: ignore[index]
                for served in self._pool.decoders.values()
                if one in served.problems
            },
        )

    def _outcome(self, process: int, message: Message) -> None:
        assert isinstance(message, WorkerOutcome)
        worker_state = self._pool.get(message.worker)
        if worker_state is None:
            return
        if message.failure is None:
            self._health.succeeded(worker_state)
        elif message.is_unreachable:
            error = WorkerUnreachable(worker_state.worker, message.failure)
            self._health.failed(worker_state, error)
        else:
            self._health.failed(worker_state, WorkerFailed(worker_state.worker, message.failure))


class Follower:
    """Has the owner's workers in `pool`, and tells the owner how requests go on them.

    `interrupt` ends samples, as `Dispatcher.interrupt`; it is set before the first message comes.
    """

    def __init__(self, peers: GatewayPeers, pool: WorkerPool, cache_index: CacheIndex) -> None:
        self.interrupt: Interrupt = lambda error, concerns: 0
        self._peers = peers
        self._pool = pool
        self._cache_index = cache_index
        self._knows_all = asyncio.Event()
        self._listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._doubtful: set[str] = set()  # a new owner has not told of them yet
        self._judgement: asyncio.TimerHandle | None = None
        peers.lost.append(self._lost)
        peers.handlers |= {
            WorkerIs: self._worker_is,
            WorkerLeft: self._worker_left,
            AllWorkers: self._all_workers,
            RequestsTaken: self._requests_taken,
            Listening: self._owner_listens,
        }

    async def knows_all(self) -> None:
        """Wait until the owner has told of its workers."""
        await self._knows_all.wait()

    async def port(self) -> int:
        """The port on which the owner serves clients, when it does."""
        return await self._listening

    def close(self) -> None:
        """Judge nobody any more."""
        if self._judgement is not None:
            self._judgement.cancel()

    # -- how requests go, see `dispatcher.OutcomeListener` ---------------------------------------

    def succeeded(self, worker_state: AnyWorkerState) -> None:
        """The worker did its part of a request, or began to answer."""
        well = WorkerOutcome(worker_state.name, None, False)
        self._peers.send_latest(("well", worker_state.name), lambda: well, to=OWNER)

    def failed(self, worker_state: AnyWorkerState, error: WorkerError) -> None:
        """The worker could not be reached, or failed where another did not."""
        is_unreachable = isinstance(error, WorkerUnreachable)
        if is_unreachable:
            # The owner will say the same; until then no other request should find out.
            worker_state.breaker = BreakerState.OPEN
        reason = error.reason if isinstance(error, WorkerUnreachable | WorkerFailed) else str(error)
        self._peers.send(WorkerOutcome(worker_state.name, reason, is_unreachable), to=OWNER)

    # -- what the owner tells --------------------------------------------------------------------

    def _worker_is(self, process: int, message: Message) -> None:
        assert isinstance(message, WorkerIs)
        worker = message.worker
        self._doubtful.discard(worker.name)
        worker_state = self._pool.get(worker.name)
        if worker_state is not None and worker_state.worker != worker:
            self._pool.remove(worker.name)
            worker_state = None
        is_new = worker_state is None
        if worker_state is None:
            worker_state = self._pool.add(worker, message.info)
        is_other = is_new or worker_state.incarnation != message.incarnation
        worker_state.facts = message.info
        worker_state.incarnation = message.incarnation
        worker_state.unheard = message.unheard
        worker_state.refused = message.refused
        worker_state.breaker = message.breaker
        worker_state.draining = message.draining
        worker_state.problem = message.problem
        if is_other and message.incarnation is not None:
            self._cache_index.admitted(worker.name, message.incarnation)
        for served in self._pool.decoders.values():
            for state in list(served.lora_names):
                if state is worker_state:
                    served.judge(state, message.unserved.get(served.name))

    def _worker_left(self, process: int, message: Message) -> None:
        assert isinstance(message, WorkerLeft)
        self._remove(message.name)

    def _all_workers(self, process: int, message: Message) -> None:
        self._knows_all.set()
        if self._doubtful:
            loop = asyncio.get_running_loop()
            self._judgement = loop.call_later(LEASE_SECONDS, self._judge)

    def _requests_taken(self, process: int, message: Message) -> None:
        assert isinstance(message, RequestsTaken)
        worker_state = self._pool.get(message.worker)
        if worker_state is not None:
            error = WorkerUnreachable(worker_state.worker, message.reason, message.loss)
            self.interrupt(error, lambda pd_request: pd_request.route.needs(worker_state))

    def _owner_listens(self, process: int, message: Message) -> None:
        assert isinstance(message, Listening)
        if not self._listening.done():
            self._listening.set_result(message.port)

    def _lost(self, process: int) -> None:
        if process != OWNER:
            return
        log.warning("the gateway process that workers join is gone; serving on with those known")
        self.close()
        self._doubtful = {worker_state.name for worker_state in self._pool}

    def _judge(self) -> None:
        for name in self._doubtful:
            log.warning("%s leaves: it has not joined the new gateway process", name)
            self._remove(name)
        self._doubtful = set()

    def _remove(self, name: str) -> None:
        if self._pool.get(name) is not None:
            self._pool.remove(name)
