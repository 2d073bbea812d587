"""Whether the process at a worker's address is that worker.

Every answer names the process that gives it (`ps_sglang.worker_info`). Another than the one before
is asked who it is, and gets no request until it is known to be the same worker, restarted. If
it is not, it is refused until the right one is back, or joins anew (POST /workers).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import aiohttp

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.gateway.errors import GatewayError
from ps_sglang.gateway.routing.pool import WorkerPool
from ps_sglang.gateway.routing.worker_state import AnyWorkerState
from ps_sglang.gateway.workers import admission
from ps_sglang.gateway.workers.probe import NO_PROOF, ProbeResult
from ps_sglang.worker_info import WorkerInfo

log = logging.getLogger("ps_sglang.gateway")

Restore = Callable[[AnyWorkerState, WorkerInfo], Awaitable[None]]
"""Brings a new process of a worker, which says this of itself, to what the worker had."""

UNHEARD: Final = "it has not said who it is"


class Recognition:
    """Sets `facts`, `incarnation`, `unheard` and `refused` of each worker.

    Register functions in `admitted` to be called with each process that was found to be its worker,
    also of a worker's first.
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        pool: WorkerPool,
        key: ClusterKey | None,
        seconds: float,
        capacity: int,
        suspected: Callable[[AnyWorkerState], None],
        restore: Restore,
        restarted: Callable[[AnyWorkerState], None],
    ) -> None:
        """A process must have the `key`, if there is one, and hold requests of `capacity` tokens.

        It has `seconds` to answer.

        `suspected` is called with a worker when another process is found in its place, `restarted`
        when that turns out to be the worker. Before, `restore` brings the process to what the
        worker had; it raises GatewayError if that has to be tried again.
        """
        self.admitted: list[Callable[[AnyWorkerState], None]] = []
        self._http = http
        self._pool = pool
        self._key = key
        self._seconds = seconds
        self._capacity = capacity
        self._suspected = suspected
        self._restore = restore
        self._restarted = restarted
        # The incarnation that was refused in a worker's place; empty for one that names itself not,
        # or does not prove its name.
        self._refused: dict[AnyWorkerState, str] = {}

    def meet(self, worker_state: AnyWorkerState) -> None:
        """A worker joins: by its own word, or as the configuration says."""
        if worker_state.incarnation is None:
            worker_state.unheard, worker_state.problem = True, UNHEARD
        else:
            self._tell_admitted(worker_state)

    def forget(self, worker_state: AnyWorkerState) -> None:
        """A worker has left."""
        self._refused.pop(worker_state, None)

    async def is_known(self, worker_state: AnyWorkerState, found: ProbeResult) -> bool:
        """Whether the process that was `found` at its address is the worker; asks a new one."""
        # What anybody could say of himself does not count.
        seen = found.incarnation if found.is_proven else None
        if seen is not None and seen == worker_state.incarnation:
            # Another may have been in its place for a while.
            self._clear(worker_state)
            return True
        if self._refused.get(worker_state) == (seen or ""):
            return False
        if not worker_state.is_starting and (worker_state.can_be_asked or worker_state.draining):
            worker_state.unheard = True
            self._suspected(worker_state)
        if not found.is_proven:
            self._refuse(worker_state, "", [NO_PROOF])
            return False
        for other in self._pool:
            if other is not worker_state and other.incarnation == seen and seen is not None:
                self._refuse(worker_state, seen, [f"{other.name!r}, by another address"])
                return False
        url = worker_state.worker.url
        try:
            facts = await admission.ask(self._http, url, self._key, self._seconds)
        except GatewayError as error:
            if seen is None:  # it is not even SGLang's
                self._refuse(worker_state, "", [error.message])
            return False
        problems = admission.changes(worker_state.worker, worker_state.facts, facts, self._capacity)
        if problems:
            self._refuse(worker_state, seen or "", problems)
        elif facts is not None and facts.incarnation == seen:
            return await self._restored(worker_state, facts)
        return False

    async def _restored(self, worker_state: AnyWorkerState, facts: WorkerInfo) -> bool:
        try:
            await self._restore(worker_state, facts)
        except GatewayError as error:
            log.info("%s does not get back what it had: %s", worker_state.worker.title, error)
            return False
        self._admit(worker_state, facts)
        return True

    async def admit_swapped(self, worker_state: AnyWorkerState) -> None:
        """The worker has other weights now, by the gateway's own wish; raises GatewayError."""
        facts = await admission.ask(self._http, worker_state.worker.url, self._key)
        if facts is not None and facts.incarnation == worker_state.incarnation:
            worker_state.facts = facts

    def _clear(self, worker_state: AnyWorkerState) -> None:
        worker_state.unheard, worker_state.refused = False, None
        self._refused.pop(worker_state, None)

    def _refuse(self, worker_state: AnyWorkerState, incarnation: str, reasons: list[str]) -> None:
        self._refused[worker_state] = incarnation
        worker_state.unheard = False
        worker_state.refused = (
            f"another worker answers at its address: {'; '.join(reasons)}. Start the one that was "
            "here, or let this one join anew (POST /workers)"
        )
        log.warning("%s is refused: %s", worker_state.worker.title, worker_state.refused)

    def _admit(self, worker_state: AnyWorkerState, facts: WorkerInfo) -> None:
        self._clear(worker_state)
        worker_state.incarnation = facts.incarnation
        if worker_state.is_starting:
            worker_state.facts = facts
            log.info("%s answers", worker_state.worker.title)
        else:
            self._restarted(worker_state)
            log.info("%s has restarted, and is the same", worker_state.worker.title)
        self._tell_admitted(worker_state)

    def _tell_admitted(self, worker_state: AnyWorkerState) -> None:
        for listener in self.admitted:
            listener(worker_state)
