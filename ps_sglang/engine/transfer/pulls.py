"""What a decode worker knows of each handoff that it waits for."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from ps_sglang.engine.transfer.memory import Indices
from ps_sglang.engine.transfer.messages import Offer, Pull
from ps_sglang.engine.transfer.page_memory import PageMemory, Ticket
from ps_sglang.engine.transfer.peers import Peer
from ps_sglang.engine.transfer.prefix_digest import PrefixDigest


@dataclass(frozen=True)
class Outcome:
    """How a pull ended: with every page (`failure` is None), or by name."""

    failure: str | None = None


class BatchState(Enum):
    """How an offered batch comes into this worker's pool."""

    COPY = "to be copied from the prefill worker's pool"
    QUEUED = "to be fetched, once fewer are in flight"
    FETCHING = "in flight, or to be copied from its frame"
    RECEIVED = "in the pool"


@dataclass(eq=False)
class OfferedBatch:
    """Pages that a prefill worker lends."""

    offer: Offer
    source_rows: Indices
    state: BatchState = BatchState.COPY
    frame: Any = None  # packed pages that came over TCP
    copied: bytes | None = None  # digest of what is in the pool, once it is there
    damaged: bool = False
    attempts: int = 0
    asked_at: float = 0.0  # when it was asked for first
    sent_at: float = 0.0  # when it was asked for last


@dataclass(eq=False)
class PendingPull:
    """One handoff."""

    id: int
    room: int
    peer: Peer
    rows: Indices
    aux_slot: int
    prefix_tokens: int
    prefix: PrefixDigest
    incarnation: str | None = None  # of the process that was asked first
    batches: dict[int, OfferedBatch] = field(default_factory=dict)
    ready: deque[OfferedBatch] = field(default_factory=deque)  # for Reader.poll() to copy
    copying: list[tuple[OfferedBatch, Ticket[bytes]]] = field(default_factory=list)
    received_batches: int = 0
    received_pages: int = 0
    unacknowledged: list[int] = field(default_factory=list)
    attempts: int = 0
    ask_at: float = 0.0
    outcome: Outcome | None = None
    ended_at: float = 0.0
    settled: bool = False  # the prefill worker knows how it ended, or need not

    @property
    def failure(self) -> str | None:
        return None if self.outcome is None else self.outcome.failure

    @property
    def fetching(self) -> list[OfferedBatch]:
        """Batches that were asked for and are not in the pool yet."""
        if self.outcome is not None:
            return []
        return [batch for batch in self.batches.values() if batch.state is BatchState.FETCHING]

    @property
    def awaits_pages(self) -> bool:
        """Whether there are pages to copy, or on their way."""
        if self.outcome is not None:
            return False
        return bool(self.ready or self.copying) or any(
            batch.copied is None for batch in self.fetching
        )

    @property
    def last_batch(self) -> OfferedBatch | None:
        """The last batch, once all batches are received."""
        last = self.batches.get(self.received_batches - 1)
        return last if last is not None and last.offer.last else None

    def end(self, outcome: Outcome, now: float) -> None:
        """It is over; the prefill worker is told, with the attempts counted anew."""
        self.outcome, self.ended_at, self.attempts = outcome, now, 0

    def message(self, session: str) -> Pull:
        """What asks the prefill worker for this."""
        return Pull(
            session=session,
            peer=self.peer.endpoint,
            incarnation=self.incarnation or "",
            pull=self.id,
            room=self.room,
            pages=len(self.rows),
            prefix_tokens=self.prefix_tokens,
            token_count=self.prefix.tokens,
            token_digest=self.prefix.digest,
        )

    def accept(self, offer: Offer) -> OfferedBatch:
        """Take in an offer; raises ValueError if it does not fit this pull."""
        end = offer.first + offer.count
        if len(offer.rows) != 4 * offer.count or end > len(self.rows):
            raise ValueError(f"pages {offer.first}..{end} were offered for {len(self.rows)}")
        source_rows = np.frombuffer(offer.rows, dtype=np.int32)
        batch = self.batches[offer.seq] = OfferedBatch(offer, source_rows)
        return batch

    def copy(self, batch: OfferedBatch, pages: PageMemory) -> Ticket[bytes]:
        """Write a batch into this worker's pool; the ticket has the digest of what was written.

        Raises ValueError if what came is not what was offered.
        """
        first, count = batch.offer.first, batch.offer.count
        rows, source = self.rows[first : first + count], self.peer.source
        if batch.frame is not None:
            return pages.scatter(rows, batch.frame)
        if count == 0:
            return pages.digest(rows)
        if source is None:
            raise ValueError("its prefill worker has just died")
        return pages.copy(source, batch.source_rows, rows)

    def received(self, batch: OfferedBatch) -> None:
        """A batch is in the pool."""
        batch.state = BatchState.RECEIVED
        self.received_batches += 1
        self.received_pages += batch.offer.count
        self.unacknowledged.append(batch.offer.seq)
