"""The leases of a prefill worker, by room and by pull, and how those ended that are over.

Whoever calls holds the lock of the `lender.Lender`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ps_sglang.engine.transfer.leases import Lease, PullKey
from ps_sglang.engine.transfer.messages import Pull, Rejected
from ps_sglang.engine.transfer.recent_map import RecentMap


class LenderEvents(Protocol):
    """What the owner of a `Lender` is told, at most one of `received` and `failed` a room.

    Called with the lender's lock held, from either thread: they must not block.
    """

    def pulled(self, room: int, prefix_tokens: int) -> None:
        """A decode worker waits for the room's pages and holds the first `prefix_tokens`."""

    def received(self, room: int) -> None:
        """Every page is in the decode worker's pool."""

    def failed(self, room: int, reason: str) -> None:
        """The handoff is over; the room's pages are not read any more."""


class LeaseTable:
    """Leases that run, and for a while the reasons of those that were refused or are over."""

    def __init__(self, events: LenderEvents, reject: Callable[[Rejected], None]) -> None:
        """No lease yet; `reject` tells a decode worker that nothing will come."""
        self._events = events
        self._reject = reject
        self._rooms: dict[int, Lease] = {}
        self._pulls: dict[PullKey, Lease] = {}
        self._refused: RecentMap[int, str] = RecentMap()  # rooms whose other half may come late
        self._finished: RecentMap[PullKey, str] = RecentMap()

    def __len__(self) -> int:
        return len(self._rooms)

    def all(self) -> list[Lease]:
        """The leases as they are now, which may be dropped meanwhile."""
        return list(self._rooms.values())

    def of_room(self, room: int) -> Lease | None:
        """The lease of a room."""
        return self._rooms.get(room)

    def of_pull(self, key: PullKey) -> Lease | None:
        """The lease that a pull asks for."""
        return self._pulls.get(key)

    def begin(self, room: int) -> Lease:
        """The lease of a room, a new one if it has none."""
        return self._rooms.setdefault(room, Lease(room))

    def attach(self, lease: Lease, pull: Pull, now: float) -> None:
        """A decode worker asks for the lease's pages."""
        lease.pull, lease.heard_at = pull, now
        self._pulls[pull.session, pull.pull] = lease

    def refusal(self, room: int) -> str | None:
        """Why a room was refused, if it was."""
        return self._refused.get(room)

    def is_finished(self, key: PullKey) -> bool:
        """Whether a pull is over."""
        return key in self._finished

    def refuse(self, room: int, reason: str) -> None:
        """Fail a room, also one whose request comes later or never."""
        lease = self._rooms.get(room)
        if lease is None:
            self._refused.add(room, reason)
        elif not lease.over:
            self.fail(lease, reason)

    def fail(self, lease: Lease, reason: str) -> None:
        """End a lease; its request, if it is here, has failed."""
        self._end(lease, reason)
        if lease.prefix is not None:
            self._events.failed(lease.room, reason)
        else:
            self.drop(lease)

    def close(self, room: int, reason: str) -> None:
        """Forget a room; its decode worker is told `reason` unless it has received its pages."""
        lease = self._rooms.get(room)
        if lease is None:
            return
        if not lease.over:
            self._end(lease, reason)
        self.drop(lease)
        if lease.key is not None:
            self._finished.add(lease.key, "the handoff is over")

    def drop(self, lease: Lease) -> None:
        """Forget a lease."""
        del self._rooms[lease.room]
        if lease.key is not None:
            del self._pulls[lease.key]

    def reject(self, key: PullKey, reason: str | None = None) -> None:
        """Answer a pull that nothing will come for; `reason` is its end if it has none yet."""
        if reason is not None:
            self._finished.add(key, reason)
        self._reject(Rejected(*key, self._finished.get(key) or "no such lease"))

    def _end(self, lease: Lease, reason: str) -> None:
        """Reject a lease's pull, now and whenever it is asked for again."""
        lease.end()
        lease.batches.clear()
        self._refused.add(lease.room, reason)
        if lease.key is not None:
            self.reject(lease.key, reason)
