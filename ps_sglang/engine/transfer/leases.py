"""What a prefill worker keeps of each handoff."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ps_sglang.engine.transfer.memory import Indices
from ps_sglang.engine.transfer.messages import Offer, Pull, reply_endpoint
from ps_sglang.engine.transfer.page_memory import Ticket
from ps_sglang.engine.transfer.prefix_digest import PrefixDigest

PullKey = tuple[str, int]  # session, pull


@dataclass(eq=False)
class LentBatch:
    """Pages that were offered, or will be once their digest is there."""

    offer: Offer
    rows: Indices
    offered: bool = False
    received: bool = False


@dataclass(eq=False)
class Lease:
    """One room: its request, the pull that asks for its pages, and what was offered."""

    room: int
    prefix: PrefixDigest | None = None  # once the request is here
    pull: Pull | None = None  # once the decode worker asked
    heard_at: float = 0.0
    batches: list[LentBatch] = field(default_factory=list)
    pages: int = 0  # offered so far
    complete: bool = False  # the last page is offered
    over: bool = False  # received or failed
    reading: list[Ticket[Any]] = field(default_factory=list)  # what is not known to be done
    attempts: int = 0
    again_at: float = 0.0

    @property
    def key(self) -> PullKey | None:
        return None if self.pull is None else (self.pull.session, self.pull.pull)

    @property
    def unreceived(self) -> list[LentBatch]:
        return [batch for batch in self.batches if not batch.received]

    @property
    def unanswered(self) -> list[LentBatch]:
        """What was offered and is not received."""
        return [batch for batch in self.batches if batch.offered and not batch.received]

    def end(self) -> None:
        """No page of this lease is read any more, also none by what had begun."""
        self.over = True
        for ticket in self.reading:
            ticket.wait()
        self.reading.clear()

    def lend(
        self, pull: Pull, rows: Indices, parts: Iterable[slice], *, last: bool
    ) -> list[LentBatch]:
        """Take in the next pages, cut into these parts, without digest or metadata yet."""
        earlier, first = len(self.batches), self.pages
        for part in parts:
            piece = rows[part].astype(np.int32)
            offer = Offer(
                session=pull.session,
                peer=pull.peer,
                pull=pull.pull,
                seq=len(self.batches),
                first=first + part.start,
                count=len(piece),
                last=last and part.stop == len(rows),
                digest=b"",
                rows=piece.tobytes(),
                metadata=b"",
            )
            self.batches.append(LentBatch(offer, piece))
        self.pages += len(rows)
        self.complete = last
        return self.batches[earlier:]

    def disagreement(self, pull: Pull) -> str | None:
        """Why this request is not the one that the pull means, or None."""
        expected = PrefixDigest(pull.token_count, pull.token_digest)
        if self.prefix == expected:
            return None
        return (
            f"the workers disagree on the base prefix: {expected} on decode worker "
            f"{reply_endpoint(pull.session)}, {self.prefix} here. Give both the same tokenizer "
            "and chat template"
        )

    def overdraft(self, pull: Pull, *, last: bool) -> str | None:
        """Why the pages offered so far are not those that the pull waits for, or None."""
        if self.pages < pull.pages and not last:
            return None
        if self.pages == pull.pages:
            return None
        return (
            f"decode worker {reply_endpoint(pull.session)} asked for {pull.pages} pages, but the "
            f"request has {self.pages}{'' if last else ' or more'}"
        )
