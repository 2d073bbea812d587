"""The decode side of a handoff: asks for the delta, takes the pages, says when they landed.

`Reader` does no IO of its own: `Reader.receive` takes the frames of a message that a
`ps_sglang.engine.transfer.lender.Lender` sent, `send(endpoint, frames)` delivers
questions, `clock` tells the time, and `Reader.tick` is to be called about twice a
second. It needs neither torch nor SGLang::

    reader = Reader(pages, aux, session=f"tcp://{ip}:{port}#{random}", base_fingerprint=base,
                    send=outbox.send, open_pool=AttachedPool, clock=time.monotonic, news=wake)
    reader.pull(room, peer="tcp://...", rows=rows, aux_slot=slot, prefix_tokens=0,
                prefix=BasePrefix.of(ids))
    while (outcome := reader.land(room)) is None:   # copies what has arrived
        ...                                         # wait for news
    reader.close(room)

Pages are copied straight from the prefill worker's pool where `open_pool` can map it (the
same host), and fetched over TCP where it raises; a batch is counted only if its digest fits.

Thread-safe. `pull`, `land` and `close` are the scheduler's, and only `land` writes
pages: so a page that an abort has freed is never written by a late transfer.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ps_sglang.engine.transfer.fetches import Fetches
from ps_sglang.engine.transfer.limits import DEFAULT_LIMITS, Count, TransferLimits, count_nothing
from ps_sglang.engine.transfer.mailbox import Receive
from ps_sglang.engine.transfer.memory import HostRows, Indices
from ps_sglang.engine.transfer.messages import (
    Alive,
    Frames,
    MalformedMessageError,
    Memory,
    Offer,
    Pages,
    Rejected,
    Unregistered,
    decode,
)
from ps_sglang.engine.transfer.peers import Peer, Peers
from ps_sglang.engine.transfer.pending_requests import PendingRequests
from ps_sglang.engine.transfer.prefix_digest import PrefixDigest
from ps_sglang.engine.transfer.pulls import BatchStep, OfferedBatch, Outcome, PendingPull
from ps_sglang.engine.transfer.recent_map import RecentMap
from ps_sglang.engine.transfer.shared_pool import AttachedPool, PoolDescriptor

logger = logging.getLogger(__name__)

_NO_DIGEST = b"no pages"


class Reader:
    """Pulls of one decode worker, one per room."""

    def __init__(
        self, pages: HostRows, aux: HostRows, *, session: str, base_fingerprint: str,
        send: Callable[[str, Frames], None], clock: Callable[[], float],
        open_pool: Callable[[PoolDescriptor], AttachedPool], news: Callable[[], None],
        collect: Callable[[Receive], None] = lambda _receive: None,
        limits: TransferLimits = DEFAULT_LIMITS, count: Count = count_nothing,
    ) -> None:  # fmt: skip
        """A reader that pulls nothing yet.

        Args:
            pages: the KV pool, one row a page.
            aux: the metadata buffers, one row a slot.
            session: `<zmq endpoint for answers>#<random>`.
            base_fingerprint: whose KV the decoder expects.
            send: delivers frames to `<zmq endpoint>[#<mailbox>]` or drops them; never blocks.
            clock: seconds, monotonic.
            open_pool: maps a prefill worker's pool, or raises OSError with the reason.
            news: called from any thread when `land` has something to do.
            collect: hands what lies in this worker's mailbox to a function; none by default.
            limits: sizes and times.
            count: counts batches, bytes, damaged batches and batches pulled again by path.
        """
        self._pages, self._aux = pages, aux
        self._session = session
        self._pending_requests = PendingRequests(session, send)
        self._clock = clock
        self._news = news
        self._collect = collect
        self._limits = limits
        self._count = count
        self._lock = threading.RLock()
        self._peers = Peers(
            session=session, base_fingerprint=base_fingerprint, page_bytes=pages.row_bytes,
            aux_bytes=aux.row_bytes, send=self._pending_requests.send, open_pool=open_pool,
            clock=clock, limits=limits,
        )  # fmt: skip
        self._rooms: dict[int, PendingPull] = {}
        self._pulls: dict[int, PendingPull] = {}
        self._fetches = Fetches(self._pending_requests.fetch, clock, limits)
        self._ended: RecentMap[int, tuple[int, str | None]] = RecentMap()  # room, failure
        self._numbers = itertools.count()

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

        With no rows to fill the pull is done at once; the prefill worker is told until it knows.

        Args:
            room: the handoff, as both legs of the request call it.
            peer: zmq endpoint of the prefill worker.
            rows: page numbers of this worker's pool, in the order of the delta.
            aux_slot: row of the metadata buffers.
            prefix_tokens: tokens of the prompt that this worker holds.
            prefix: what the pages stand for.
        """
        with self._lock:
            now, number = self._clock(), next(self._numbers)
            found = self._peers.find(peer, now)
            pull = PendingPull(number, room, found, rows, aux_slot, prefix_tokens, prefix)
            if len(rows) == 0:
                pull.end(Outcome(), now)
            self._rooms[room] = self._pulls[number] = pull
            if found.incarnation is not None:
                self._ask(pull, now)

    def land(self, room: int) -> Outcome | None:
        """Copy batches that have arrived into the pool; with very many, there is news of the rest.

        Returns:
            How the pull ended, or None if it has not.
        """
        pull = self._rooms.get(room)
        if pull is None:
            return None
        for _ in range(self._limits.land_batches):
            self._collect(self.receive)
            if pull.outcome is not None or not pull.ready:
                break
            self._land(pull, pull.ready.popleft())
        else:
            self._news()
        if pull.landed_unsaid:
            with self._lock:
                self._pending_requests.received(pull, pull.landed_unsaid)
                pull.landed_unsaid = []
        return pull.outcome

    def close(self, room: int) -> None:
        """Forget a room; its pages are not written any more."""
        with self._lock:
            pull = self._rooms.pop(room, None)
            if pull is None:
                return
            self._fail(pull, "the decode worker aborted the request")
            if pull.settled:
                self._forget(pull)

    # The prefill workers' side (socket thread)

    def receive(self, frames: Sequence[Any]) -> None:
        """Act on a message.

        Raises:
            MalformedMessageError: it is none, or was damaged, or is not for a decode worker.
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
                    self._answer_late(message)
            else:
                raise MalformedMessageError(f"{type(message).__name__} is for a prefill worker")

    def tick(self) -> None:
        """Ask again what was not answered; fail what a dead prefill worker cannot answer."""
        with self._lock:
            for peer in self._peers.tend():
                self._on_silence(peer)
            now = self._clock()
            for pull in list(self._pulls.values()):
                self._tend_pull(pull, now)

    def _on_peer(self, peer: Peer, message: Memory | Unregistered | Alive) -> None:
        now = peer.heard_at = self._clock()
        if isinstance(message, Unregistered):
            self._peers.register(peer, now)
        elif isinstance(message, Memory):
            restarted = self._peers.admit(peer, message)
            for pull in self._pulls_of(peer):
                if pull.batches and restarted:
                    self._fail(pull, f"prefill worker {peer.endpoint} restarted")
                elif not pull.batches:
                    self._ask(pull, now)

    def _on_silence(self, peer: Peer) -> None:
        silence = f"was not heard of for {self._limits.lease_s:g} s"
        for pull in self._pulls_of(peer):
            self._fail(pull, f"prefill worker {peer.endpoint} {silence}")
        if not self._pulls_of(peer):
            self._peers.forget(peer)
            self._fetches.forget(peer.endpoint)

    def _tend_pull(self, pull: PendingPull, now: float) -> None:
        peer = pull.peer
        if pull.outcome is not None and now - pull.ended_at > self._limits.linger_s:
            self._settle(pull)
        if pull.settled or peer.incarnation is None:
            return
        if not pull.awaits_pages and now >= pull.ask_at:
            self._ask(pull, now)
        if (reason := self._fetches.tend(pull, now)) is not None:
            self._fail(pull, reason)

    def _pulls_of(self, peer: Peer) -> list[PendingPull]:
        return [pull for pull in self._pulls.values() if pull.peer is peer]

    def _ask(self, pull: PendingPull, now: float) -> None:
        """Send what the prefill worker has not answered: the pull, or that it is over."""
        pull.incarnation = pull.incarnation or pull.peer.incarnation
        pull.ask_at = now + self._limits.backoff(pull.attempts)
        pull.attempts += 1
        if pull.failure is not None:
            self._pending_requests.cancelled(pull)
        else:
            self._pending_requests.ask(pull)

    # Answers of a prefill worker

    def _on_pull(self, pull: PendingPull, message: Offer | Pages | Rejected, frame: Any) -> None:
        if isinstance(message, Rejected):
            self._fail(pull, message.reason, tell=False)
            self._settle(pull)
        elif pull.failure is not None:
            self._pending_requests.cancelled(pull)
        elif isinstance(message, Offer):
            self._on_offer(pull, message)
        else:
            self._on_pages(pull, message, frame)

    def _on_offer(self, pull: PendingPull, offer: Offer) -> None:
        known = pull.batches.get(offer.seq)
        if known is not None:
            self._on_known_offer(pull, known, offer)
            return
        if pull.outcome is not None:  # needed nothing, and is told that it gets nothing
            self._pending_requests.received(pull, [offer.seq])
            self._settle(pull)
            return
        try:
            batch = pull.accept(offer)
        except ValueError as error:
            self._fail(pull, str(error))
            return
        if pull.peer.source is not None or offer.count == 0:
            pull.ready.append(batch)
            self._news()
        else:
            self._fetches.want(pull, batch)

    def _on_known_offer(self, pull: PendingPull, known: OfferedBatch, offer: Offer) -> None:
        if known.step is BatchStep.RECEIVED:
            self._pending_requests.received(pull, [offer.seq])
        elif not known.offer.digest and offer.digest:
            known.offer = offer
            if known.copied is not None:  # land() has waited for this
                pull.ready.append(known)
                self._news()

    def _on_pages(self, pull: PendingPull, pages: Pages, frame: Any) -> None:
        batch = pull.batches.get(pages.seq)
        if batch is None or batch.step is not BatchStep.FETCH or batch.frame is not None:
            return  # came twice
        pull.peer.progress_at = self._clock()
        batch.frame = frame
        pull.ready.append(batch)
        self._news()

    def _answer_late(self, offer: Offer) -> None:
        """The answer to an offer was lost, or crossed it."""
        room, failure = self._ended.get(offer.pull) or (None, "the pull is over")
        if failure is None:
            self._pending_requests.received_late(offer.pull, offer.seq, offer.peer)
        else:
            self._pending_requests.cancelled_late(offer.pull, room, failure, offer.peer)

    # Batches

    def _land(self, pull: PendingPull, batch: OfferedBatch) -> None:
        path = "shm" if batch.step is BatchStep.COPY else "tcp"
        copied = batch.copied
        if copied is None:
            # Outside the lock: no other thread writes pages, or takes this batch.
            try:
                copied = pull.copy(batch, self._pages)
            except ValueError as error:
                logger.warning("A batch of pages from %s: %s", pull.peer.endpoint, error)
                copied = _NO_DIGEST
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
        """Every batch up to the last has landed: were these all pages?"""
        if pull.landed_pages != len(pull.rows):
            self._fail(pull, f"{pull.landed_pages} pages came, not {len(pull.rows)}")
            return
        try:
            self._aux.scatter(np.array([pull.aux_slot]), last.offer.metadata)
        except ValueError as error:
            self._fail(pull, f"bad metadata from the prefill worker: {error}")
        else:
            pull.end(Outcome(), self._clock())
            pull.settled = True  # by Landed

    def _pull_again(self, pull: PendingPull, batch: OfferedBatch, path: str) -> None:
        first, end = batch.offer.first, batch.offer.first + batch.offer.count
        what = f"pages {first}..{end} of room {pull.room}"
        self._count("damaged", path, 1)
        if batch.damaged:
            self._fail(pull, f"{what} came damaged from {pull.peer.endpoint}, twice")
            return
        logger.warning("The digest of %s does not fit: pulled again", what)
        self._count("pulled_again", path, 1)
        batch.damaged = True
        self._fetches.want(pull, batch)

    # Ends

    def _fail(self, pull: PendingPull, reason: str, *, tell: bool = True) -> None:
        if pull.outcome is not None:
            return
        pull.end(Outcome(reason), self._clock())
        if tell:
            self._ask(pull, pull.ended_at)
        self._fetches.pump(pull.peer.endpoint)
        self._news()

    def _settle(self, pull: PendingPull) -> None:
        """The prefill worker knows how a pull ended: once the room is closed it may go."""
        pull.settled = True
        if self._rooms.get(pull.room) is not pull:
            self._forget(pull)

    def _forget(self, pull: PendingPull) -> None:
        self._pulls.pop(pull.id, None)
        self._ended.add(pull.id, (pull.room, pull.failure))
