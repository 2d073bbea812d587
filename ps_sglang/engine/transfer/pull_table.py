"""The pulls of a decode worker, by room and by number, and how those ended that are over.

Whoever calls holds the lock of the `reader.Reader`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from ps_sglang.engine.metrics import HandoffFailure
from ps_sglang.engine.transfer.fetches import Fetches
from ps_sglang.engine.transfer.limits import TransferLimits
from ps_sglang.engine.transfer.memory import Indices
from ps_sglang.engine.transfer.messages import Offer
from ps_sglang.engine.transfer.peers import Peer
from ps_sglang.engine.transfer.prefill_client import PrefillClient
from ps_sglang.engine.transfer.prefix_digest import PrefixDigest
from ps_sglang.engine.transfer.pulls import Outcome, PendingPull
from ps_sglang.engine.transfer.recent_map import RecentMap


class PullTable:
    """Pulls from the request for pages until the prefill worker knows how they ended."""

    def __init__(
        self, client: PrefillClient, fetches: Fetches, *, clock: Callable[[], float],
        wake: Callable[[], None], failed: Callable[[HandoffFailure], None],
        limits: TransferLimits,
    ) -> None:  # fmt: skip
        """No pull yet. See `reader.Reader` for the arguments."""
        self._client = client
        self._fetches = fetches
        self._clock = clock
        self._wake = wake
        self._failed = failed
        self._limits = limits
        self._rooms: dict[int, PendingPull] = {}
        self._pulls: dict[int, PendingPull] = {}
        self._ended: RecentMap[int, tuple[int, str | None]] = RecentMap()  # room, failure
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._pulls)

    def all(self) -> list[PendingPull]:
        """The pulls as they are now, which may be forgotten meanwhile."""
        return list(self._pulls.values())

    def get(self, number: int) -> PendingPull | None:
        """A pull by its number."""
        return self._pulls.get(number)

    def of_room(self, room: int) -> PendingPull | None:
        """The pull of a room that is not closed."""
        return self._rooms.get(room)

    def of_peer(self, peer: Peer) -> list[PendingPull]:
        """The pulls from a prefill worker."""
        return [pull for pull in self._pulls.values() if pull.peer is peer]

    def begin(
        self, room: int, peer: Peer, rows: Indices, aux_slot: int, prefix_tokens: int,
        prefix: PrefixDigest,
    ) -> None:  # fmt: skip
        """Ask for the pages of a room; with no rows to fill the pull is done at once."""
        now, number = self._clock(), next(self._numbers)
        pull = PendingPull(number, room, peer, rows, aux_slot, prefix_tokens, prefix)
        if len(rows) == 0:
            pull.end(Outcome(), now)
        self._rooms[room] = self._pulls[number] = pull
        if peer.incarnation is not None:
            self.ask(pull, now)

    def ask(self, pull: PendingPull, now: float) -> None:
        """Send what the prefill worker has not answered: the pull, or that it is over."""
        pull.incarnation = pull.incarnation or pull.peer.incarnation
        pull.ask_at = now + self._limits.backoff(pull.attempts)
        pull.attempts += 1
        if pull.failure is not None:
            self._client.cancelled(pull)
        else:
            self._client.pull(pull)

    def fail(
        self, pull: PendingPull, reason: str, kind: HandoffFailure | None, *, tell: bool = True
    ) -> None:
        """End a pull by name, unless it is over; `tell` the prefill worker.

        `kind` is None where this worker wants it no more.
        """
        if pull.outcome is not None:
            return
        if kind is not None:
            self._failed(kind)
        pull.end(Outcome(reason), self._clock())
        if tell:
            self.ask(pull, pull.ended_at)
        self._fetches.pump(pull.peer.endpoint)
        self._wake()

    def settle(self, pull: PendingPull) -> None:
        """The prefill worker knows how a pull ended: once the room is closed it may go."""
        pull.settled = True
        if self._rooms.get(pull.room) is not pull:
            self._forget(pull)

    def close(self, room: int, reason: str) -> None:
        """Forget a room; its pull fails with `reason` unless it is over."""
        pull = self._rooms.pop(room, None)
        if pull is None:
            return
        self.fail(pull, reason, None)
        if pull.settled:
            self._forget(pull)

    def answer_late(self, offer: Offer) -> None:
        """Answer an offer for a pull that is forgotten: the last answer was lost, or crossed it."""
        room, failure = self._ended.get(offer.pull) or (None, "the pull is over")
        if failure is None:
            self._client.received_late(offer.pull, offer.seq, offer.peer)
        else:
            self._client.cancelled_late(offer.pull, room, failure, offer.peer)

    def _forget(self, pull: PendingPull) -> None:
        self._pulls.pop(pull.id, None)
        self._ended.add(pull.id, (pull.room, pull.failure))
