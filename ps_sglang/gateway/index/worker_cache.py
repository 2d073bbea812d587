"""What one worker's cache holds: by its events, which go to the index, and by an estimate."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.events.control import EventStreamError
from ps_sglang.events.messages import AllBlocksCleared, BlockRemoved, KvEvent, Span
from ps_sglang.events.subscriber import EventSubscriber, SubscriberTiming
from ps_sglang.gateway.config import Worker
from ps_sglang.gateway.index.base_index import BaseIndex
from ps_sglang.gateway.index.estimate import Estimate

log = logging.getLogger("ps_sglang.gateway")

OnSpan = Callable[[str, Span], None]
"""Takes a worker's name and its part of a request's trace."""


class WorkerCache:
    """One worker's part of the index, kept by its events if it publishes any, and its estimate.

    `problem` says why the index does not have what the worker holds, None if it has.
    """

    def __init__(
        self,
        worker: Worker,
        index: BaseIndex,
        on_span: OnSpan,
        clock: Callable[[], float],
        timing: SubscriberTiming | None,
        key: ClusterKey | None,
    ) -> None:
        self._name = worker.name
        self._index = index
        self._on_span = on_span
        self._task: asyncio.Task[None] | None = None
        self._incarnation: str | None = None
        self.estimate = Estimate(clock)
        self.events: EventSubscriber | None = None
        self.problem: str | None = "it publishes no events"
        if worker.events is not None and worker.events_control is not None:
            self.events = EventSubscriber(worker.events, worker.events_control, self, timing, key)
            self.problem = "its events have not been heard yet"

    @property
    def is_live(self) -> bool:
        """Whether the index has what the worker holds."""
        return self.problem is None

    def start(self) -> None:
        """Subscribe to the events."""
        if self.events is not None and self._task is None:
            self._task = asyncio.create_task(self.events.run(), name=f"events of {self._name}")
            self._task.add_done_callback(self._ended)

    def stop(self) -> asyncio.Task[None] | None:
        """Unsubscribe; returns the task that ends, if there is one."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task is self._task and not task.cancelled():
            self.lost(f"its events failed: {task.exception()}")
            log.error("worker %s: its events failed", self._name, exc_info=task.exception())

    def admitted(self, incarnation: str | None) -> None:
        """Whose events they must be; the estimate for another process is forgotten."""
        if self._incarnation not in (None, incarnation):
            self.estimate.forget()
        self._incarnation = incarnation

    def check_incarnation(self, incarnation: str) -> None:
        """This process tells; raises EventStreamError if it is not the worker."""
        if self._incarnation not in (None, incarnation):
            raise EventStreamError(
                f"the events at its address are of another process ({incarnation}, not "
                f"{self._incarnation})"
            )

    def kv(self, event: KvEvent) -> None:
        """The worker's tree changed; raises OutOfSync."""
        if isinstance(event, AllBlocksCleared):
            self._index.cleared(self._name)
        elif event.medium not in (None, "GPU"):
            return  # a lower tier of the cache; no request is served from there
        elif isinstance(event, BlockRemoved):
            self._index.removed(self._name, event.block_hashes)
        else:
            self._index.stored(
                self._name,
                event.block_hashes,
                event.parent_block_hash,
                event.token_ids,
                event.block_size,
                event.cache_salt or "",
            )

    def span(self, record: Span) -> None:
        """The worker's part of a request's trace."""
        self._on_span(self._name, record)

    def live(self) -> None:
        """The index has what the worker holds."""
        self.problem = None

    def lost(self, reason: str) -> None:
        """The index does not have it any more."""
        self.problem = reason
        self._index.cleared(self._name)
