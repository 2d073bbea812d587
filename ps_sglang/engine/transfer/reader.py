"""The decode side of a handoff: asks for the delta, takes the pages, and acknowledges them.

The `Reader` pulls the pages of each room from a prefill worker into this worker's pool. It does no
IO of its own: `Reader.receive` takes the frames of a message that a
`ps_sglang.engine.transfer.lender.Lender` sent, `send(endpoint, frames)` delivers requests, `clock`
tells the time, and `Reader.tick` is to be called about twice a second. It needs neither torch nor
SGLang::

    reader = Reader(pages, aux, session=f"tcp://{ip}:{port}#{random}", base_fingerprint=base,
                    send=outbox.send, clock=time.monotonic, wake=ring)
    reader.pull(room, peer="tcp://...", rows=rows, aux_slot=slot, prefix_tokens=0,
                prefix=PrefixDigest.of(ids))
    while (outcome := reader.poll(room)) is None:   # copies what has arrived
        ...                                         # wait until it is woken
    reader.close(room)

Pages are copied straight from the prefill worker's pool where `pages` can open it (the same host),
and fetched over TCP where it cannot; a batch is counted only if its digest fits.

Thread-safe. `pull`, `poll` and `close` are the scheduler's, and only `poll` writes pages, or has a
device write them. A pull is not over, and `close` does not return, before the device is done: so a
page that an abort has freed is never written by a late transfer.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ps_sglang.engine.metrics import HandoffFailure
from ps_sglang.engine.transfer.fetches import Fetches
from ps_sglang.engine.transfer.limits import DEFAULT_LIMITS, Count, TransferLimits, count_nothing
from ps_sglang.engine.transfer.mailbox import Receive
from ps_sglang.engine.transfer.memory import HostRows, Indices
from ps_sglang.engine.transfer.messages import (
    ABORTS,
    DECODE_ABORTED,
    Alive,
    Frames,
    MalformedMessageError,
    Memory,
    Offer,
    Pages,
    Rejected,
    Unregistered,
    decode,
    restarted,
)
from ps_sglang.engine.transfer.page_memory import Done, PageMemory, Ticket
from ps_sglang.engine.transfer.peers import Peer, Peers
from ps_sglang.engine.transfer.prefill_client import PrefillClient
from ps_sglang.engine.transfer.prefix_digest import PrefixDigest
from ps_sglang.engine.transfer.pull_table import PullTable
from ps_sglang.engine.transfer.pulls import BatchState, OfferedBatch, Outcome, PendingPull

logger = logging.getLogger(__name__)

_NO_DIGEST = b"no pages"


class Reader:
    """Pulls of one decode worker, one per room."""

    def __init__(
        self, pages: PageMemory, aux: HostRows, *, session: str, base_fingerprint: str,
        send: Callable[[str, Frames], None], clock: Callable[[], float], wake: Callable[[], None],
        collect: Callable[[Receive], None] = lambda _receive: None,
        limits: TransferLimits = DEFAULT_LIMITS, count: Count = count_nothing,
        failed: Callable[[HandoffFailure], None] = lambda _reason: None,
    ) -> None:  # fmt: skip
        """A reader that pulls nothing yet.

        `pages` is the KV pool, one row a page, and `aux` the metadata buffers, one row a slot.
        `session` is `<zmq endpoint for answers>#<random>`. `base_fingerprint` says whose KV the
        decoder expects. `send` delivers frames to `<zmq endpoint>[#<mailbox>]` or drops them, and
        never blocks. `clock` gives monotonic seconds. `wake` is called from any thread when `poll`
        has something to do; a `pages` whose tickets are done late calls it itself. `collect` hands
        what lies in this worker's mailbox to a function. `count` counts batches, bytes, damaged
        batches and batches pulled again by path, `failed` counts pulls that failed.
        """
        self._pages, self._aux = pages, aux
        self._session = session
        self._client = PrefillClient(session, send)
        self._clock = clock
        self._wake = wake
        self._collect = collect
        self._limits = limits
        self._count = count
        self._lock = threading.RLock()
        self._peers = Peers(
            pages, session=session, base_fingerprint=base_fingerprint, aux_bytes=aux.row_bytes,
            send=self._client.send, clock=clock, limits=limits,
        )  # fmt: skip
        self._fetches = Fetches(self._client.fetch, clock, limits)
        self._pulls = PullTable(
            self._client, self._fetches, clock=clock, wake=wake, failed=failed, limits=limits
        )

    @property
    def pulls(self) -> int:
        """Pulls that are not closed, or whose prefill worker does not know yet that they ended."""
        return len(self._pulls)

    # The request's side (scheduler thread)

    def pull(
        self, room: int, peer: str, *, rows: Indices, aux_slot: int, prefix_tokens: int,
        prefix: PrefixDigest,
    ) -> None:  # fmt: skip
        """Ask a prefill worker for the pages of a room.

        `room` is SGLang's bootstrap room, the same on both workers, and `peer` the zmq endpoint of
        the prefill worker. `rows` are page numbers of this worker's pool, in the order of the
        delta. `aux_slot` is a row of the metadata buffers. This worker holds the first
        `prefix_tokens` of the prompt. `prefix` is what the pages stand for. With no rows to fill
        the pull is done at once; the prefill worker is told until it knows.
        """
        with self._lock:
            prefill_worker = self._peers.find(peer, self._clock())
            self._pulls.begin(room, prefill_worker, rows, aux_slot, prefix_tokens, prefix)

    def poll(self, room: int) -> Outcome | None:
        """Copy batches that have arrived into the pool; returns how the pull ended, None if not.

        With very many batches it copies some, and wakes its caller for the rest.
        """
        pull = self._pulls.of_room(room)
        if pull is None:
            return None
        self._take_copied(pull)
        for _ in range(self._limits.batches_per_poll):
            self._collect(self.receive)
            if pull.outcome is not None or not pull.ready:
                break
            self._copy(pull, pull.ready.popleft())
        else:
            self._wake()
        if pull.unacknowledged:
            with self._lock:
                self._client.received(pull, pull.unacknowledged)
                pull.unacknowledged = []
        return None if pull.copying else pull.outcome

    def close(self, room: int) -> None:
        """Forget a room; its pages are not written any more."""
        if (pull := self._pulls.of_room(room)) is not None:
            for _, ticket in pull.copying:
                ticket.wait()
            pull.copying.clear()
        with self._lock:
            self._pulls.close(room, DECODE_ABORTED)

    # The prefill workers' side (socket thread)

    def receive(self, frames: Sequence[Any]) -> None:
        """Act on a message.

        Raises MalformedMessageError if it is none, was damaged, or is not for a decode worker.
        """
        message, pages = decode(frames)
        with self._lock:
            if message.session != self._session:
                return  # for an earlier process at this endpoint
            if isinstance(message, (Memory, Unregistered, Alive)):
                peer = self._peers.get(message.peer)
                if peer is not None:
                    self._on_peer(peer, message)
            elif isinstance(message, (Offer, Pages, Rejected)):
                pull = self._pulls.get(message.pull)
                if pull is not None:
                    pull.peer.heard_at = self._clock()
                    self._on_pull(pull, message, pages)
                elif isinstance(message, Offer):
                    self._pulls.answer_late(message)
            else:
                raise MalformedMessageError(f"{type(message).__name__} is for a prefill worker")

    def tick(self) -> None:
        """Ask again what was not answered; fail what a dead prefill worker cannot answer."""
        with self._lock:
            for peer in self._peers.tend():
                self._on_dead(peer)
            now = self._clock()
            for pull in self._pulls.all():
                self._tend_pull(pull, now)

    def _on_peer(self, peer: Peer, message: Memory | Unregistered | Alive) -> None:
        now = peer.heard_at = self._clock()
        if isinstance(message, Unregistered):
            self._peers.register(peer, now)
        elif isinstance(message, Memory):
            is_another = self._peers.admit(peer, message)
            for pull in self._pulls.of_peer(peer):
                if pull.batches and is_another:
                    self._pulls.fail(pull, restarted(peer.endpoint), HandoffFailure.LOST)
                elif not pull.batches:
                    self._pulls.ask(pull, now)

    def _on_dead(self, peer: Peer) -> None:
        for pull in self._pulls.of_peer(peer):
            silence = f"was not heard of for {self._limits.lease_s:g} s"
            reason = f"prefill worker {peer.endpoint} {silence}"
            self._pulls.fail(pull, reason, HandoffFailure.LOST)
        if not self._pulls.of_peer(peer):
            self._peers.forget(peer)
            self._fetches.forget(peer.endpoint)

    def _tend_pull(self, pull: PendingPull, now: float) -> None:
        peer = pull.peer
        if pull.outcome is not None and now - pull.ended_at > self._limits.linger_s:
            self._pulls.settle(pull)
        if pull.settled or peer.incarnation is None:
            return
        if not pull.awaits_pages and now >= pull.ask_at:
            self._pulls.ask(pull, now)
        if (reason := self._fetches.tend(pull, now)) is not None:
            self._pulls.fail(pull, reason, HandoffFailure.STALLED)

    # Answers of a prefill worker

    def _on_pull(self, pull: PendingPull, message: Offer | Pages | Rejected, frame: Any) -> None:
        if isinstance(message, Rejected):
            if message.reason in ABORTS:
                kind = HandoffFailure.ABORTED
            elif message.reason == restarted(pull.peer.endpoint):
                kind = HandoffFailure.LOST
            else:
                kind = HandoffFailure.REFUSED
            self._pulls.fail(pull, message.reason, kind, tell=False)
            self._pulls.settle(pull)
        elif pull.failure is not None:
            self._client.cancelled(pull)
        elif isinstance(message, Offer):
            self._on_offer(pull, message)
        else:
            self._on_pages(pull, message, frame)

    def _on_offer(self, pull: PendingPull, offer: Offer) -> None:
        batch = pull.batches.get(offer.seq)
        if batch is not None:
            self._on_repeated_offer(pull, batch, offer)
            return
        if pull.outcome is not None:  # needed nothing, and is told that it gets nothing
            self._client.received(pull, [offer.seq])
            self._pulls.settle(pull)
            return
        try:
            batch = pull.accept(offer)
        except ValueError as error:
            self._pulls.fail(pull, str(error), HandoffFailure.MALFORMED)
            return
        if pull.peer.source is not None or offer.count == 0:
            pull.ready.append(batch)
            self._wake()
        else:
            self._fetches.enqueue(pull, batch)

    def _on_repeated_offer(self, pull: PendingPull, batch: OfferedBatch, offer: Offer) -> None:
        if batch.state is BatchState.RECEIVED:
            self._client.received(pull, [offer.seq])
        elif not batch.offer.digest and offer.digest:
            batch.offer = offer
            if batch.copied is not None:  # poll() has waited for this
                pull.ready.append(batch)
                self._wake()

    def _on_pages(self, pull: PendingPull, pages: Pages, frame: Any) -> None:
        batch = pull.batches.get(pages.seq)
        if batch is None or batch.state is not BatchState.FETCHING or batch.frame is not None:
            return  # came twice
        pull.peer.progress_at = self._clock()
        batch.frame = frame
        pull.ready.append(batch)
        self._wake()

    # Batches

    def _copy(self, pull: PendingPull, batch: OfferedBatch) -> None:
        """Copy a batch, unless it is there; it counts once its copy is done."""
        if batch.copied is not None:
            self._on_copied(pull, batch, batch.copied)
            return
        # Outside the lock: no other thread writes pages, or takes this batch.
        try:
            ticket: Ticket[bytes] = pull.copy(batch, self._pages)
        except ValueError as error:
            logger.warning("A batch of pages from %s: %s", pull.peer.endpoint, error)
            ticket = Done(_NO_DIGEST)
        if ticket.done():
            self._on_copied(pull, batch, ticket.value)
        else:
            pull.copying.append((batch, ticket))

    def _take_copied(self, pull: PendingPull) -> None:
        """Take in the copies that are done by now."""
        for entry in [entry for entry in pull.copying if entry[1].done()]:
            pull.copying.remove(entry)
            batch, ticket = entry
            self._on_copied(pull, batch, ticket.value)

    def _on_copied(self, pull: PendingPull, batch: OfferedBatch, copied: bytes) -> None:
        path = self._pages.path if batch.state is BatchState.COPY else "tcp"
        with self._lock:
            if pull.outcome is not None:
                return
            batch.frame, batch.copied = None, copied
            if not batch.offer.digest:
                return  # it follows, and brings the batch here again
            if copied == batch.offer.digest:
                self._on_received(pull, batch, path)
            else:
                self._pull_again(pull, batch, path)

    def _on_received(self, pull: PendingPull, batch: OfferedBatch, path: str) -> None:
        self._count("batches", path, 1)
        self._count("bytes", path, batch.offer.count * self._pages.row_total)
        pull.received(batch)
        pull.attempts = 0
        pull.ask_at = self._clock() + self._limits.backoff(0)
        if (last := pull.last_batch) is not None:
            self._finish(pull, last)
        if path == "tcp":
            self._fetches.pump(pull.peer.endpoint)

    def _finish(self, pull: PendingPull, last: OfferedBatch) -> None:
        """Every batch up to the last is received: were these all pages?"""
        if pull.received_pages != len(pull.rows):
            reason = f"{pull.received_pages} pages came, not {len(pull.rows)}"
            self._pulls.fail(pull, reason, HandoffFailure.MALFORMED)
            return
        try:
            self._aux.scatter(np.array([pull.aux_slot]), last.offer.metadata)
        except ValueError as error:
            reason = f"bad metadata from the prefill worker: {error}"
            self._pulls.fail(pull, reason, HandoffFailure.MALFORMED)
        else:
            pull.end(Outcome(), self._clock())
            pull.settled = True  # by Received

    def _pull_again(self, pull: PendingPull, batch: OfferedBatch, path: str) -> None:
        first, end = batch.offer.first, batch.offer.first + batch.offer.count
        what = f"pages {first}..{end} of room {pull.room}"
        self._count("damaged", path, 1)
        if batch.damaged:
            reason = f"{what} came damaged from {pull.peer.endpoint}, twice"
            self._pulls.fail(pull, reason, HandoffFailure.DAMAGED)
            return
        logger.warning("The digest of %s does not fit: pulled again", what)
        self._count("pulled_again", path, 1)
        batch.damaged = True
        self._fetches.enqueue(pull, batch)
