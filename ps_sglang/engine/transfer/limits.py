"""Sizes and times of the handoff protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class TransferLimits:
    """Defaults fit a fast local network; both sides may differ.

    Attributes:
        batch_bytes: pages are offered in batches of about this size, so that no step blocks a
            scheduler for long, and what is damaged costs little to pull again.
        fetches: batches that one decode worker asks of one prefill worker at a time over TCP, and
            that a prefill worker offers ahead of their digests.
        land_batches: batches of one room that are copied before the decode worker's requests get
            another step.
        retry_s: what was not answered is sent again after this, and ever later from then on.
        beat_s: how often a decode worker asks whether a prefill worker is there.
        lease_s: a peer not heard of for this long is dead, and its leases end.
        stall_s: a pull whose asked-for pages do not come for this long fails.
        linger_s: how long a decode worker goes on saying that a pull is over, or needs no page.
    """

    batch_bytes: int = 4 << 20
    fetches: int = 4
    land_batches: int = 8
    retry_s: float = 2.0
    beat_s: float = 2.0
    lease_s: float = 15.0
    stall_s: float = 60.0
    linger_s: float = 300.0

    def backoff(self, attempts: int) -> float:
        """Seconds to wait before trying once more after `attempts` tries."""
        return self.retry_s * float(2 ** min(attempts, 4))

    def batches(self, rows: int, row_bytes: int) -> Iterator[slice]:
        """How rows of `row_bytes` are cut into batches; one empty batch if there are none."""
        step = max(1, self.batch_bytes // max(1, row_bytes))
        for start in range(0, max(rows, 1), step):
            yield slice(start, min(start + step, rows))


DEFAULT_LIMITS = TransferLimits()

Count = Callable[[str, str, int], None]  # what, over which path ("shm", "tcp" or ""), how many


def count_nothing(_what: str, _path: str, _amount: int) -> None:
    """Where nobody counts."""
