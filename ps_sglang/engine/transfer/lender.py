"""The prefill side of a handoff: pages are offered, lent, and given back once they are received.

A *lease* is a room whose pages a decode worker may read; the `Lender` keeps the leases. It does no
IO of its own: `Lender.receive` takes the frames of a message that a
`ps_sglang.engine.transfer.reader.Reader` sent, `send(endpoint, frames)` delivers answers, `clock`
tells the time, and `Lender.tick` is to be called about twice a second. It needs neither torch nor
SGLang::

    lender = Lender(pages, aux, base_fingerprint=base, incarnation=random, send=outbox.send,
                    events=events, clock=time.monotonic)
    lender.open(room, PrefixDigest.of(ids))     # a request is here; events.pulled() follows
    lender.offer(room, rows)                    # pages of a finished chunk
    lender.offer(room, rows, aux_slot=slot)     # the last ones; events.received() follows
    lender.poll()                               # now and then: a device may be done with a digest
    lender.close(room, "why, if it is not done")

The owner must neither free nor write offered pages before `events.received` or `events.failed`. The
lease ends with the decode worker's last Received, by a failure, or when the decode worker is not
heard of any more.

Thread-safe. `open`, `offer`, `poll` and `close` are the scheduler's. After `close` has returned, or
an event has ended the room, no page of it is read any more: what a device has begun is waited for.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace

from ps_sglang.engine.transfer.decode_sessions import DecodeSession, DecodeSessions
from ps_sglang.engine.transfer.heap import keep_freed_frames
from ps_sglang.engine.transfer.lease_table import LeaseTable, LenderEvents
from ps_sglang.engine.transfer.leases import Lease, LentBatch
from ps_sglang.engine.transfer.limits import DEFAULT_LIMITS, Count, TransferLimits, count_nothing
from ps_sglang.engine.transfer.memory import HostRows, Indices
from ps_sglang.engine.transfer.messages import (
    Alive,
    Cancelled,
    Fetch,
    Frames,
    MalformedMessageError,
    Memory,
    Message,
    Offer,
    Pages,
    Pull,
    Received,
    Register,
    Unregistered,
    decode,
    encode,
    reply_endpoint,
    restarted,
)
from ps_sglang.engine.transfer.page_memory import PageMemory, Ticket
from ps_sglang.engine.transfer.prefix_digest import PrefixDigest


class Lender:
    """Leases of one prefill worker, one per room."""

    def __init__(
        self, pages: PageMemory, aux: HostRows, *, base_fingerprint: str, incarnation: str,
        send: Callable[[str, Frames], None], events: LenderEvents, clock: Callable[[], float],
        limits: TransferLimits = DEFAULT_LIMITS, count: Count = count_nothing,
    ) -> None:  # fmt: skip
        """A lender with no lease.

        `pages` is the KV pool, one row a page, and `aux` the metadata buffers, one row a slot.
        `base_fingerprint` says whose KV the pages hold: a decode worker must expect the same.
        `incarnation` is a random name of this process. `send` delivers frames to
        `<zmq endpoint>[#<mailbox>]` or drops them, and never blocks. `clock` gives monotonic
        seconds. `count` counts expired leases.
        """
        self._pages, self._aux = pages, aux
        self._incarnation = incarnation
        self._send_frames = send
        self._events = events
        self._clock = clock
        self._limits = limits
        self._count = count
        # Batches that are offered before their digest is there; nobody may see unwritten pages.
        self._ahead = 0 if pages.is_written_late else limits.fetches
        self._lock = threading.RLock()
        self._open_tickets: list[tuple[Lease, Ticket[Any], Callable[[Any], object]]] = []
        self._sessions = DecodeSessions(
            base_fingerprint=base_fingerprint, page_bytes=pages.row_bytes,
            aux_bytes=aux.row_bytes, clock=clock, limits=limits,
        )  # fmt: skip
        self._leases = LeaseTable(events, lambda rejected: self._send(rejected.session, rejected))

    @property
    def rooms(self) -> int:
        """Rooms whose request or whose decode worker is waited for, or that are not closed."""
        return len(self._leases)

    # The request's side (scheduler thread)

    def open(self, room: int, prefix: PrefixDigest) -> None:
        """A request with this base prefix is here; its decode worker may have asked already."""
        with self._lock:
            lease = self._leases.begin(room)
            lease.prefix = prefix
            if (reason := self._leases.refusal(room)) is not None:
                self._leases.fail(lease, reason)
            elif lease.pull is not None:
                self._match(lease, lease.pull)

    def offer(self, room: int, rows: Indices, aux_slot: int | None = None) -> None:
        """Lend the next pages of a room; with `aux_slot` they are the last.

        Does nothing if the room's handoff is over.
        """
        if len(rows) == 0 and aux_slot is None:
            return
        with self._lock:
            lease = self._leases.of_room(room)
            if lease is None or lease.over or lease.pull is None:
                return
            lent = self._lend(lease, lease.pull, rows, last=aux_slot is not None)
        for batch, later in itertools.zip_longest(lent, lent[self._ahead :] if self._ahead else ()):
            # Outside the lock: the pages are leased. The decode worker copies them meanwhile.
            digest = self._pages.digest(batch.rows)
            metadata = b""
            if aux_slot is not None and batch.offer.last:
                metadata = self._aux.gather(np.array([aux_slot])).tobytes()
            if not self._once(
                lease, digest, functools.partial(self._offer, lease, batch, metadata)
            ):
                return
            if later is not None:
                self._offer(lease, later)

    def poll(self) -> None:
        """Offer and send what a device has digested and gathered meanwhile."""
        if not self._open_tickets:
            return
        with self._lock:
            entries, self._open_tickets = self._open_tickets, []
            for lease, ticket, act in entries:
                if not ticket.done():
                    self._open_tickets.append((lease, ticket, act))
                    continue
                if not lease.over:
                    lease.reading.remove(ticket)
                    act(ticket.value)

    def close(self, room: int, reason: str) -> None:
        """Forget a room; its decode worker is told `reason` unless it has received its pages."""
        with self._lock:
            self._leases.close(room, reason)

    def refuse(self, room: int, reason: str) -> None:
        """Fail a room from outside, also one whose request comes later or never."""
        with self._lock:
            self._leases.refuse(room, reason)

    # The decode workers' side (socket thread)

    def receive(self, frames: Sequence[Any]) -> None:
        """Act on a message.

        Raises MalformedMessageError if it is none, was damaged, or is not for a prefill worker.
        """
        message, _ = decode(frames)
        with self._lock:
            if isinstance(message, Register):
                self._on_register(message)
            elif isinstance(message, (Alive, Pull, Fetch, Received, Cancelled)):
                session = self._sessions.heard(message.session)
                if session is None:
                    self._send(message.session, Unregistered(message.session, message.peer))
                else:
                    self._handle(session, message)
            else:
                raise MalformedMessageError(f"{type(message).__name__} is for a decode worker")

    def tick(self) -> None:
        """End the leases of dead decode workers; offer again what was not answered."""
        with self._lock:
            for name in self._sessions.expire():
                self._expire(name)
            now = self._clock()
            for lease in self._leases.all():
                self._tend(lease, now)
        self.poll()

    def _tend(self, lease: Lease, now: float) -> None:
        if lease.prefix is None:
            # The request never came, and its decode worker has stopped asking.
            if now - lease.heard_at > self._limits.lease_s:
                self._leases.drop(lease)
        elif not lease.over and now >= lease.again_at and (unanswered := lease.unanswered):
            for batch in unanswered:
                self._send(batch.offer.session, batch.offer)
            lease.attempts += 1
            lease.again_at = now + self._limits.backoff(lease.attempts)

    def _on_register(self, message: Register) -> None:
        self._sessions.register(message)
        self._send(
            message.session,
            Memory(message.session, message.peer, self._incarnation, self._pages.describe()),
        )

    def _handle(
        self, session: DecodeSession, message: Alive | Pull | Fetch | Received | Cancelled
    ) -> None:
        if isinstance(message, Alive):
            self._send(message.session, message)
        elif isinstance(message, Pull):
            self._on_pull(session, message)
        elif isinstance(message, Cancelled):
            self._on_cancelled(message)
        else:
            key = (message.session, message.pull)
            lease = self._leases.of_pull(key)
            if lease is None or lease.over:
                self._leases.reject(key)
                return
            lease.attempts = 0
            lease.again_at = self._clock() + self._limits.backoff(0)
            if isinstance(message, Received):
                self._on_received(lease, message)
            elif message.seq < len(lease.batches) and lease.batches[message.seq].offered:
                self._on_fetch(lease, message, lease.batches[message.seq])

    def _on_pull(self, session: DecodeSession, pull: Pull) -> None:
        key = (pull.session, pull.pull)
        if self._leases.is_finished(key):
            self._leases.reject(key)
            return
        lease = self._leases.of_pull(key)
        if lease is not None:  # asked again
            lease.heard_at = self._clock()
            return
        lease = self._leases.of_room(pull.room)
        reason = session.incompatibility or self._leases.refusal(pull.room)
        if lease is None and pull.incarnation != self._incarnation:
            reason = reason or restarted(session.peer)
        if lease is not None and lease.pull is not None:
            reason = f"room {pull.room} is being pulled already"
        elif reason is not None:
            self._leases.refuse(pull.room, reason)
        if reason is not None:
            self._leases.reject(key, reason)
            return
        lease = self._leases.begin(pull.room)
        self._leases.attach(lease, pull, self._clock())
        if lease.prefix is not None:
            self._match(lease, pull)

    def _on_fetch(self, lease: Lease, fetch: Fetch, batch: LentBatch) -> None:
        keep_freed_frames()
        # Under the lock, so that no page is read once close() has returned.
        pages = Pages(fetch.session, fetch.pull, fetch.seq)
        self._once(
            lease,
            self._pages.gather(batch.rows),
            functools.partial(self._send, fetch.session, pages),
        )

    def _on_received(self, lease: Lease, received: Received) -> None:
        for seq in received.seqs:
            if seq < len(lease.batches):
                lease.batches[seq].received = True
        if lease.complete and not lease.unreceived:
            lease.end()
            self._events.received(lease.room)

    def _on_cancelled(self, cancelled: Cancelled) -> None:
        key = (cancelled.session, cancelled.pull)
        lease = self._leases.of_pull(key)
        if lease is not None and not lease.over:
            self._leases.fail(lease, cancelled.reason)
        elif lease is None and cancelled.room is not None:
            unclaimed = self._leases.of_room(cancelled.room)
            if unclaimed is None or unclaimed.pull is None:
                self._leases.refuse(cancelled.room, cancelled.reason)
        self._leases.reject(key)  # so that it is not sent again

    # Leases

    def _match(self, lease: Lease, pull: Pull) -> None:
        if (reason := lease.disagreement(pull)) is not None:
            self._leases.fail(lease, reason)
        else:
            self._events.pulled(lease.room, pull.prefix_tokens)

    def _lend(self, lease: Lease, pull: Pull, rows: Indices, *, last: bool) -> list[LentBatch]:
        """Lend pages in batches, and offer as many as a decode worker can make use of.

        Few messages fit into its mailbox, and it needs room for their digests.
        """
        parts = self._limits.batches(len(rows), self._pages.row_total)
        lent = lease.lend(pull, rows, parts, last=last)
        if (reason := lease.overdraft(pull, last=last)) is not None:
            self._leases.fail(lease, reason)
            return []
        lease.again_at = self._clock() + self._limits.backoff(lease.attempts)
        for batch in lent[: self._ahead]:
            self._offer(lease, batch)
        return lent

    def _once(self, lease: Lease, ticket: Ticket[Any], act: Callable[[Any], object]) -> bool:
        """Act on what comes of a ticket, now or in `poll`; returns whether the lease runs on."""
        if ticket.done():
            act(ticket.value)
            return not lease.over
        with self._lock:
            lease.reading.append(ticket)
            self._open_tickets.append((lease, ticket, act))
            if lease.over:
                lease.end()
            return not lease.over

    def _offer(
        self, lease: Lease, batch: LentBatch, metadata: bytes = b"", digest: bytes = b""
    ) -> None:
        """Offer a batch, with its digest if that is known, unless the handoff is over."""
        with self._lock:
            if not lease.over:
                batch.offered = True
                batch.offer = replace(batch.offer, digest=digest, metadata=metadata)
                self._send(batch.offer.session, batch.offer)

    def _expire(self, session: str) -> None:
        reason = (
            f"decode worker {reply_endpoint(session)} was not heard of for "
            f"{self._limits.lease_s:g} s"
        )
        for lease in self._leases.all():
            if lease.pull is not None and lease.pull.session == session and not lease.over:
                self._count("expired", "", 1)
                self._leases.fail(lease, reason)

    def _send(self, session: str, message: Message, pages: Any = None) -> None:
        # Only its scheduler waits for an offer, and finds it in the mailbox of the session.
        address = session if isinstance(message, Offer) else reply_endpoint(session)
        self._send_frames(address, encode(message, pages))
