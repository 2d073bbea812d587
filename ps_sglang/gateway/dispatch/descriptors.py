"""Counts the connections that requests need, and refuses before the system would.

Each client's connection takes a descriptor, and each sample up to two more, one to each of its
workers. Without a count the first to find none left is whatever comes next: a request
that is half done, a probe of a healthy worker, or the log.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from ps_sglang.gateway.dispatch.worker_client import WorkerClient
from ps_sglang.gateway.errors import BadRequest, GatewayBusy
from ps_sglang.open_files import limit

PER_SAMPLE: Final = 2
PER_WORKER: Final = 8
"""Probes of a worker, and the sockets of its events."""
SPARE: Final = 24
"""Files, a look-up of a name, whatever a library opens for a moment."""


class Descriptors:
    """The descriptors of this process; for the event loop's thread.

    `workers` tells how many workers there are. What is open when this is made stays open.
    """

    def __init__(self, client: WorkerClient, workers: Callable[[], int]) -> None:
        self.clients = 0
        """Open connections of clients; whoever accepts them counts."""
        self._client = client
        self._workers = workers
        self._reserved = 0
        self._limit = limit()
        self._open_before = len(os.listdir("/proc/self/fd"))
        client.is_crowded = self._is_crowded

    @property
    def capacity(self) -> int:
        """Descriptors for clients that are served, and their samples."""
        return self._all - self._for_refusals

    @property
    def may_accept(self) -> bool:
        """Whether one more client can be taken, if only to be refused.

        Clients alone must not take what their requests need: a burst would refuse itself.
        """
        most = self.capacity // (1 + PER_SAMPLE) + self._for_refusals
        return self.clients < most and self._used < self._all

    @contextmanager
    def reserve(self, samples: int) -> Iterator[None]:
        """In this block the samples can be sent; raises GatewayBusy, or BadRequest if never."""
        needed = PER_SAMPLE * samples
        if needed > self.capacity:
            raise BadRequest(
                f"The request asks for {samples} answers at once, and this gateway has connections "
                f"for {self.capacity // PER_SAMPLE}; split the request."
            )
        if self._used + needed > self.capacity:
            raise GatewayBusy(
                f"the request needs {needed} connections to workers, and {self._used} of "
                f"{self.capacity} connections are in use"
            )
        self._reserved += needed
        try:
            yield
        finally:
            self._reserved -= needed

    @property
    def _all(self) -> int:
        fixed = self._open_before + SPARE + PER_WORKER * self._workers()
        return max(self._limit - fixed, 0)

    @property
    def _for_refusals(self) -> int:
        return max(self._all // 8, min(self._all, 8))

    @property
    def _used(self) -> int:
        return self.clients + max(self._reserved, self._client.busy)

    def _is_crowded(self) -> bool:
        return self.clients + self._client.opened >= self.capacity
