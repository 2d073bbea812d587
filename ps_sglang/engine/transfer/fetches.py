"""Batches that a decode worker fetches over TCP: no more in flight than it asked for."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ps_sglang.engine.transfer.limits import TransferLimits
from ps_sglang.engine.transfer.pulls import BatchState, OfferedBatch, PendingPull


@dataclass
class _Queue:
    waiting: deque[tuple[PendingPull, OfferedBatch]] = field(default_factory=deque)
    in_flight: list[tuple[PendingPull, OfferedBatch]] = field(default_factory=list)


class Fetches:
    """For each prefill worker, the batches that wait to be fetched and those in flight."""

    def __init__(
        self, send: Callable[[PendingPull, OfferedBatch], None], clock: Callable[[], float],
        limits: TransferLimits,
    ) -> None:  # fmt: skip
        """`send` asks the prefill worker of a pull for a batch of it."""
        self._send = send
        self._clock = clock
        self._limits = limits
        self._queues: defaultdict[str, _Queue] = defaultdict(_Queue)

    def enqueue(self, pull: PendingPull, batch: OfferedBatch) -> None:
        """Fetch a batch once fewer are in flight."""
        batch.state, batch.attempts, batch.copied = BatchState.QUEUED, 0, None
        self._queues[pull.peer.endpoint].waiting.append((pull, batch))
        self.pump(pull.peer.endpoint)

    def pump(self, endpoint: str) -> None:
        """Fetch as many batches as may be in flight: the receiver sets the pace."""
        queue = self._queues[endpoint]
        queue.in_flight = [
            (pull, batch) for pull, batch in queue.in_flight if batch in pull.fetching
        ]
        while queue.waiting and len(queue.in_flight) < self._limits.fetches:
            pull, batch = queue.waiting.popleft()
            if pull.outcome is None:
                batch.state, batch.asked_at = BatchState.FETCHING, self._clock()
                queue.in_flight.append((pull, batch))
                self._fetch(pull, batch)

    def tend(self, pull: PendingPull, now: float) -> str | None:
        """Ask again for what did not come; returns why the pull must fail, if it must.

        It must if nothing came for too long.
        """
        peer = pull.peer
        for batch in pull.fetching:
            if batch.frame is not None or batch.copied is not None:
                continue  # it has come
            unanswered = now - max(batch.sent_at, peer.progress_at)
            stalled = now - max(batch.asked_at, peer.progress_at) > self._limits.stall_s
            if unanswered > self._limits.backoff(batch.attempts):
                self._fetch(pull, batch)
            elif stalled and unanswered > self._limits.retry_s:
                # Not before it was asked again: it may be this process that stood still.
                stall = f"{self._limits.stall_s:g} s"
                return f"no page came from prefill worker {peer.endpoint} for {stall}"
        return None

    def forget(self, endpoint: str) -> None:
        """Drop the queue of a dead prefill worker."""
        self._queues.pop(endpoint, None)

    def _fetch(self, pull: PendingPull, batch: OfferedBatch) -> None:
        batch.attempts += 1
        batch.sent_at = self._clock()
        self._send(pull, batch)
