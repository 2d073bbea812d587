"""Leases of workers: who does not renew leaves, as if it had been removed.

A worker that joins with a lease says at least every SECONDS that it is still there. Nobody else
watches over its machine: a host that is gone, or cut off, says nothing. One whose lease has expired
registers again, as one does whose gateway has restarted. One that somebody removed does not.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ps_sglang.gateway.errors import GatewayError, Loss
from ps_sglang.gateway.routing.pool import WorkerPool
from ps_sglang.gateway.routing.worker_state import AnyWorkerState

log = logging.getLogger("ps_sglang.gateway")

SECONDS: Final = 15.0
"""As long as a silent worker keeps its requests, see `ProbeTiming.silence`."""
CHECK_SECONDS: Final = 1.0
_LONGEST_CHECK_SECONDS: Final = 2 * CHECK_SECONDS
_MOST_REMOVED: Final = 1024

TakeRequests = Callable[[AnyWorkerState, str, Loss], int]
"""`HealthMonitor.take_requests_from`."""


@dataclass
class WorkerLease:
    """A worker's right to be asked, until `ends`; only its holder knows `id`."""

    ends: float
    id: str = field(default_factory=lambda: secrets.token_hex(16))


class Leases:
    """The leases of a pool's workers. `clock` gives seconds.

    Time in which the gateway itself stood still does not count: no renewal could come.
    """

    def __init__(
        self,
        pool: WorkerPool,
        take_requests: TakeRequests,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._take_requests = take_requests
        self._clock = clock
        self._awake = 0.0
        self._checked = clock()
        self._leases: dict[AnyWorkerState, WorkerLease] = {}
        self._removed: OrderedDict[str, str] = OrderedDict()  # id -> worker's name
        pool.left.append(self._left)

    def grant(self, worker_state: AnyWorkerState) -> WorkerLease:
        """A worker has joined, and will renew."""
        self._advance()
        lease = self._leases[worker_state] = WorkerLease(self._awake + SECONDS)
        return lease

    def renew(self, name: str, id: str) -> AnyWorkerState:
        """The worker of that name is still there; raises GatewayError if it has no such lease."""
        self._advance()
        worker_state = self._pool.get(name)
        if worker_state is not None and self.holds(worker_state, id):
            self._leases[worker_state].ends = self._awake + SECONDS
            return worker_state
        if self._removed.get(id) == name:
            raise GatewayError(
                f"{name!r} was removed from the cluster.", status=410, code="worker_removed"
            )
        raise GatewayError(
            f"{name!r} has no such lease: it has expired, or this gateway has restarted. Join "
            "again (POST /workers).",
            status=404,
            code="lease_unknown",
        )

    def holds(self, worker_state: AnyWorkerState, id: str) -> bool:
        """Whether the worker has the lease of that id."""
        lease = self._leases.get(worker_state)
        return lease is not None and secrets.compare_digest(lease.id.encode(), id.encode())

    def seconds_left(self, worker_state: AnyWorkerState) -> float | None:
        """How long a worker's lease lasts still; None for a worker without one."""
        lease = self._leases.get(worker_state)
        return None if lease is None else max(0.0, lease.ends - self._awake)

    def expire(self) -> None:
        """Have all leave whose leases have ended."""
        self._advance()
        for worker_state, lease in list(self._leases.items()):
            if lease.ends <= self._awake:
                del self._leases[worker_state]
                log.warning("%s leaves: its lease expired", worker_state.worker.title)
                self._take_requests(worker_state, "its lease expired", Loss.TAKEN)
                self._pool.remove(worker_state.name)

    async def watch(self) -> None:
        """Expire leases for ever."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            self.expire()

    def _advance(self) -> None:
        now = self._clock()
        self._awake += min(now - self._checked, _LONGEST_CHECK_SECONDS)
        self._checked = now

    def _left(self, worker_state: AnyWorkerState) -> None:
        """A worker was removed: it must not come back by itself."""
        if (lease := self._leases.pop(worker_state, None)) is not None:
            self._removed[lease.id] = worker_state.name
            if len(self._removed) > _MOST_REMOVED:
                self._removed.popitem(last=False)
