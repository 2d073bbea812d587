"""Batches that a decode worker fetches over TCP: no more on their way than it asked for."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ps_sglang.engine.transfer.limits import TransferLimits
from ps_sglang.engine.transfer.pulls import BatchStep, OfferedBatch, PendingPull


@dataclass
class _Queue:
    wanted: deque[tuple[PendingPull, OfferedBatch]] = field(default_factory=deque)
    asked: list[tuple[PendingPull, OfferedBatch]] = field(default_factory=list)


class Fetches:
    """For each prefill worker, the batches that are wanted and those that were asked for."""

    def __init__(
        self, send: Callable[[PendingPull, OfferedBatch], None], clock: Callable[[], float],
        limits: TransferLimits,
    ) -> None:  # fmt: skip
        """Args: send: asks the prefill worker of a pull for a batch of it."""
        self._send = send
        self._clock = clock
        self._limits = limits
        self._queues: defaultdict[str, _Queue] = defaultdict(_Queue)

    def want(self, pull: PendingPull, batch: OfferedBatch) -> None:
        """Fetch a batch when its turn comes."""
        batch.step, batch.attempts, batch.copied = BatchStep.WANT, 0, None
        self._queues[pull.peer.endpoint].wanted.append((pull, batch))
        self.pump(pull.peer.endpoint)

    def pump(self, endpoint: str) -> None:
        """Fetch as many wanted batches as may be on their way: the receiver sets the pace."""
        queue = self._queues[endpoint]
        queue.asked = [(pull, batch) for pull, batch in queue.asked if batch in pull.fetching]
        while queue.wanted and len(queue.asked) < self._limits.fetches:
            pull, batch = queue.wanted.popleft()
            if pull.outcome is None:
                batch.step = BatchStep.FETCH
                queue.asked.append((pull, batch))
                self._fetch(pull, batch)

    def tend(self, pull: PendingPull, now: float) -> str | None:
        """Ask again for what did not come.

        Returns:
            Why the pull must fail, if too long nothing came.
        """
        peer = pull.peer
        for batch in pull.fetching:
            if batch.frame is not None or batch.copied is not None:
                continue  # it has come
            waited = now - max(batch.sent_at, peer.progress_at)
            if waited > self._limits.stall_s:
                silence = f"for {self._limits.stall_s:g} s"
                return f"no page came from prefill worker {peer.endpoint} {silence}"
            if waited > self._limits.backoff(batch.attempts):
                self._fetch(pull, batch)
        return None

    def forget(self, endpoint: str) -> None:
        """A prefill worker is gone."""
        self._queues.pop(endpoint, None)

    def _fetch(self, pull: PendingPull, batch: OfferedBatch) -> None:
        batch.attempts += 1
        batch.sent_at = self._clock()
        self._send(pull, batch)
