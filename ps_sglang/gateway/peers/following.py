"""How the workers of the owner's pool, and their adapters, come to the other processes.

A follower has the same workers in the same states, and probes none: what its requests meet it tells
the owner, whose breakers count it. It has the same adapters on them, and changes none. See `owner`
for what it is told.

While there is no owner a follower serves on with the workers that it knows. A new owner knows none:
they join it again, as they join any gateway that has restarted, and those that have not done so
within a lease's time leave here as well.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import cast

from ps_sglang.gateway.config import DecodeWorker
from ps_sglang.gateway.errors import WorkerError, WorkerFailed, WorkerUnreachable
from ps_sglang.gateway.index.cache_index import CacheIndex
from ps_sglang.gateway.peers.messages import (
    AdapterIs,
    AdapterLeft,
    AllWorkers,
    Listening,
    Message,
    RequestsTaken,
    WorkerIs,
    WorkerLeft,
    WorkerOutcome,
)
from ps_sglang.gateway.peers.peers import OWNER, GatewayPeers
from ps_sglang.gateway.routing.decoder_state import AdapterSource, DecoderState
from ps_sglang.gateway.routing.pool import WorkerPool
from ps_sglang.gateway.routing.worker_state import AnyWorkerState, BreakerState, Decode
from ps_sglang.gateway.workers.health import Interrupt
from ps_sglang.gateway.workers.leases import SECONDS as LEASE_SECONDS

log = logging.getLogger("ps_sglang.gateway")


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
            AdapterIs: self._adapter_is,
            AdapterLeft: self._adapter_left,
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
        if isinstance(worker, DecodeWorker) and worker.adapters:
            worker = replace(worker, adapters=())  # of which AdapterIs tells
        worker_state = self._pool.get(worker.name)
        if worker.name in self._doubtful:
            self._doubtful.discard(worker.name)
            if isinstance(worker, DecodeWorker) and worker_state is not None:
                self._pool.without_adapters(cast("Decode", worker_state))
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
            if isinstance(worker, DecodeWorker):
                self._pool.restarted(cast("Decode", worker_state))

    def _worker_left(self, process: int, message: Message) -> None:
        assert isinstance(message, WorkerLeft)
        self._remove(message.name)

    def _adapter_is(self, process: int, message: Message) -> None:
        assert isinstance(message, AdapterIs)
        lora_names = {
            cast("Decode", worker_state): lora_name
            for name, lora_name in message.lora_names.items()
            if (worker_state := self._pool.get(name)) is not None
        }
        served = self._pool.decoders.get(message.decoder)
        if served is None or served.is_replaced_by(lora_names):
            served = DecoderState(message.decoder)
            self._pool.publish(served)
        served.source = AdapterSource(message.path, message.digest)
        for worker_state in list(served.lora_names):
            if worker_state not in lora_names and worker_state.name not in self._doubtful:
                served.leave(worker_state)
        served.lora_names |= lora_names
        for worker_state in lora_names:
            served.judge(worker_state, message.problems.get(worker_state.name))

    def _adapter_left(self, process: int, message: Message) -> None:
        assert isinstance(message, AdapterLeft)
        served = self._pool.decoders.get(message.decoder)
        if served is not None and served.source is not None:
            self._pool.withdraw(served)

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
