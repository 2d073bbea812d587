"""What a decode worker sends to the prefill workers that it pulls from."""

from __future__ import annotations

from collections.abc import Callable

from ps_sglang.engine.transfer.messages import Cancelled, Fetch, Frames, Message, Received, encode
from ps_sglang.engine.transfer.pulls import OfferedBatch, PendingPull


class PrefillClient:
    """Messages of one session and their addresses.

    Pull and Received are for the prefill worker's scheduler, which finds them in its mailbox when
    it looks. All else needs its attention at once, whatever it computes.
    """

    def __init__(self, session: str, send: Callable[[str, Frames], None]) -> None:
        """See `reader.Reader` for the arguments."""
        self._session = session
        self._send_frames = send

    def send(self, address: str, message: Message) -> None:
        """Send any message to `<zmq endpoint>[#<mailbox>]`."""
        self._send_frames(address, encode(message))

    def pull(self, pull: PendingPull) -> None:
        """Ask for the pages of a pull."""
        self.send(pull.peer.mailbox, pull.message(self._session))

    def fetch(self, pull: PendingPull, batch: OfferedBatch) -> None:
        """Ask for a batch over TCP."""
        peer = pull.peer.endpoint
        self.send(peer, Fetch(self._session, peer, pull.id, batch.offer.seq))

    def received(self, pull: PendingPull, seqs: list[int]) -> None:
        """Acknowledge batches."""
        peer = pull.peer
        self.send(peer.mailbox, Received(self._session, peer.endpoint, pull.id, seqs))

    def received_late(self, pull: int, seq: int, peer: str) -> None:
        """Acknowledge a batch of a pull that is forgotten."""
        self.send(peer, Received(self._session, peer, pull, [seq]))

    def cancelled(self, pull: PendingPull) -> None:
        """Say that a pull has failed."""
        self.cancelled_late(pull.id, pull.room, pull.failure or "", pull.peer.endpoint)

    def cancelled_late(self, pull: int, room: int | None, reason: str, peer: str) -> None:
        """Say that a pull that is forgotten has failed."""
        self.send(peer, Cancelled(self._session, peer, pull, room, reason))
