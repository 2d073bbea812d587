"""What the owner tells the other gateway processes of its workers and their adapters.

It looks at them some times in a second and tells what has changed; what cannot wait is told at
once. See `following` for what the others make of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator
from typing import Final

from aiohttp import hdrs

from ps_sglang.gateway.config import DecodeWorker, PrefillWorker
from ps_sglang.gateway.dispatch.pd_request import PrefillDecodeRequest
from ps_sglang.gateway.errors import (
    RETRY_AFTER_SECONDS,
    GatewayError,
    WorkerError,
    WorkerFailed,
    WorkerUnreachable,
)
from ps_sglang.gateway.peers.messages import (
    AdapterIs,
    AdapterLeft,
    AllWorkers,
    Listening,
    Message,
    Nothing,
    RequestsTaken,
    Withdrawn,
    WorkerIs,
    WorkerLeft,
    WorkerOutcome,
)
from ps_sglang.gateway.peers.peers import GatewayPeers
from ps_sglang.gateway.routing.pool import WorkerPool
from ps_sglang.gateway.routing.worker_state import AnyWorkerState
from ps_sglang.gateway.workers.health import HealthMonitor, Interrupt

LOOK_SECONDS: Final = 0.02


class ProcessSilent(GatewayError):
    """A change cannot be made for all processes, as one of them would not hear of it."""

    def __init__(self, processes: Collection[int]) -> None:
        numbers = " and ".join(map(str, sorted(processes)))
        super().__init__(
            f"Gateway process {numbers} does not answer, and would not hear of the change. "
            "Nothing has changed: try again when the launcher has restarted it.",
            status=503,
            code="process_silent",
        )

    @property
    def headers(self) -> dict[str, str]:
        """When to try again."""
        return {hdrs.RETRY_AFTER: str(RETRY_AFTER_SECONDS)}


class Owner:
    """Tells the others of this process's workers; one that is alone, or no owner, tells nothing.

    A change of adapters is done for all: `require_all` before it, then `all_know` or `all_end`.
    """

    def __init__(self, peers: GatewayPeers, pool: WorkerPool, health: HealthMonitor) -> None:
        self._peers = peers
        self._pool = pool
        self._health = health
        self._told: dict[AnyWorkerState, WorkerIs] = {}
        self._adapters: dict[str, AdapterIs | None] = {}  # None: to be told again, or to have left
        self._port: int | None = None
        if peers.is_alone or not peers.is_owner:
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

    async def require_all(self) -> None:
        """Raise ProcessSilent if another process would not hear of a change."""
        if silent := await self._peers.silent():
            raise ProcessSilent(silent)

    async def all_know(self) -> None:
        """Wait until each process has heard of what is served now, or is gone."""
        await self._peers.ask(Nothing(), None)

    async def all_end(self, decoder: str) -> None:
        """Wait until no other process has a request of what was withdrawn under that name."""
        await self._peers.ask(Withdrawn(decoder), None)

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
        adapters = {adapter.decoder: adapter for adapter in self._served_adapters()}
        for decoder in self._adapters.keys() - adapters.keys():
            self._peers.send(AdapterLeft(decoder))
        for decoder, adapter in adapters.items():
            if self._adapters.get(decoder) != adapter:
                self._peers.send(adapter)
        self._adapters = {**adapters}

    def _left(self, worker_state: AnyWorkerState) -> None:
        self._told.pop(worker_state, None)
        # A follower takes its adapters from it: one of its name that comes has them anew.
        self._adapters = dict.fromkeys(self._adapters)
        self._peers.send(WorkerLeft(worker_state.name))

    def _greet(self, process: int) -> Iterator[Message]:
        for worker_state in self._pool:
            yield self._describe(worker_state)
        yield from self._served_adapters()
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
        )

    def _served_adapters(self) -> Iterator[AdapterIs]:
        for served in self._pool.decoders.values():
            if served.source is not None:
                yield AdapterIs(
                    served.name,
                    served.source.path,
                    served.source.digest,
                    {one.name: lora_name for one, lora_name in served.lora_names.items()},
                    {one.name: problem for one, problem in served.problems.items()},
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
