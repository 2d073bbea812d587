"""Sizes and times of the handoff protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class TransferLimits:
    """Defaults fit a fast local network; both sides may differ.

    Pages are offered in batches of about `batch_bytes`, so that no step blocks a scheduler for
    long, and what is damaged costs little to pull again. One decode worker asks one prefill worker
    for `fetches` batches at a time over TCP, and a prefill worker offers as many ahead of their
    digests. `batches_per_poll` batches of one room are copied before the decode worker's requests
    get another step.

    Times are in seconds. What was not answered is sent again after `retry_s`, and ever later from
    then on. Every `beat_s` a decode worker asks whether a prefill worker is there. A peer that was
    not heard of for `lease_s` is dead, and its leases end. A pull fails whose pages were asked for
    and do not come for `stall_s`. For `linger_s` a decode worker repeats that a pull is over, or
    needs no page.
    """

    batch_bytes: int = 4 << 20
    fetches: int = 4
    batches_per_poll: int = 8
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
