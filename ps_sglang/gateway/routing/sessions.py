"""Conversations: which workers each stays with.

A client may name a conversation (see `bodies.session_id`), and the one above it. Sessions are
remembered until they end, until they are idle for IDLE_SECONDS, or until too many newer ones of
their tenant have come.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ps_sglang.gateway.bodies import session_id
from ps_sglang.gateway.errors import GatewayError
from ps_sglang.gateway.limits import SESSIONS_PER_TENANT
from ps_sglang.gateway.routing.family import Family
from ps_sglang.gateway.routing.worker_state import AnyWorkerState, Decode

IDLE_SECONDS = 3600.0


@dataclass(eq=False, slots=True)
class Session:
    """A conversation: who prefills it, its decode worker of each decoder, where it has been.

    `tenant` is whose it is. `ended` is what its requests get once it is over.
    """

    id: str
    tenant: str = ""
    prefill: AnyWorkerState | None = None
    decode: dict[str, Decode] = field(default_factory=dict)
    visited: set[AnyWorkerState] = field(default_factory=set)
    used: float = 0.0
    ended: GatewayError | None = None

    @property
    def worker_id(self) -> str:
        """What workers call it."""
        return session_id.for_workers(self.tenant, self.id)

    def goes_to(self, decoder: str, prefill: AnyWorkerState, decode: Decode) -> None:
        """A request of this conversation was sent there; the next ones follow it."""
        self.prefill = prefill
        self.decode[decoder] = decode
        self.visited.add(prefill)
        self.visited.add(decode)


class Sessions:
    """The conversations of a tenant that go on, the longest idle first."""

    def __init__(
        self,
        tenant: str = "",
        *,
        most: int = SESSIONS_PER_TENANT,
        idle_seconds: float = IDLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tenant = tenant
        self._most = most
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._family = Family()
        self.ended: list[Callable[[Session], None]] = []
        """Called with each session that somebody ends."""

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def ancestors(self, id: str) -> tuple[str, ...]:
        """The sessions above one, the nearest first."""
        return self._family.above(id)

    def use(self, id: str, ancestors: Sequence[str] = ()) -> Session:
        """The session of that id, a new one if there is none; it counts as used now.

        `ancestors` are the sessions above it, the nearest first; raises GatewayError if it has
        others.
        """
        self._family.join(id, ancestors)
        session = self._sessions.get(id)
        if session is None:
            session = self._sessions[id] = Session(id, self._tenant)
        session.used = self._clock()
        self._sessions.move_to_end(id)
        self._forget_idle(session.used - self._idle_seconds)
        return session

    def place(
        self,
        id: str,
        ancestors: Sequence[str],
        prefill: AnyWorkerState | None,
        decode: Mapping[str, Decode],
        visited: Iterable[AnyWorkerState],
    ) -> None:
        """Another process has used the session of that id, and it goes on with these workers."""
        try:
            session = self.use(id, ancestors)
        except GatewayError:  # a request has put it below another meanwhile; that client is told
            session = self.use(id)
        session.prefill = prefill
        session.decode |= decode
        session.visited.update(visited)

    def get(self, id: str) -> Session | None:
        """The session of that id, if there is one."""
        return self._sessions.get(id)

    def tree(self, id: str) -> list[Session]:
        """The session of that id and all below it, as far as there are any."""
        return [self._sessions[one] for one in self._family.below(id) if one in self._sessions]

    def end(self, session: Session, error: GatewayError) -> None:
        """The session is over; one that has its id and began after it is left alone."""
        session.ended = error
        if self._sessions.get(session.id) is session:
            del self._sessions[session.id]
            self._family.leave(session.id, self._sessions)
            for listener in self.ended:
                listener(session)

    def leave(self, worker_state: AnyWorkerState) -> None:
        """A worker has left the pool: no conversation holds on to it."""
        for session in self._sessions.values():
            session.visited.discard(worker_state)
            if session.prefill is worker_state:
                session.prefill = None
            session.decode = {
                k: one for k, one in session.decode.items() if one is not worker_state
            }

    def _forget_idle(self, oldest_allowed: float) -> None:
        while True:
            oldest = next(iter(self._sessions.values()))
            if oldest.used >= oldest_allowed and len(self._sessions) <= self._most:
                return
            del self._sessions[oldest.id]
            self._family.leave(oldest.id, self._sessions)


class TenantSessions:
    """The conversations of all tenants: an id names one within its tenant only."""

    def __init__(self, most: int = SESSIONS_PER_TENANT) -> None:
        self._most = most
        self._of: dict[str, Sessions] = {}
        self.ended: list[Callable[[Session], None]] = []
        """Called with each session that somebody ends, of whatever tenant."""

    def __iter__(self) -> Iterator[Sessions]:
        return iter(self._of.values())

    def of(self, tenant: str) -> Sessions:
        """Those of one tenant."""
        sessions = self._of.get(tenant)
        if sessions is None:
            sessions = self._of[tenant] = Sessions(tenant, most=self._most)
            sessions.ended = self.ended
        return sessions

    def end(self, session: Session, error: GatewayError) -> None:
        """See `Sessions.end`."""
        self.of(session.tenant).end(session, error)

    def leave(self, worker_state: AnyWorkerState) -> None:
        """A worker has left the pool: no conversation holds on to it."""
        for sessions in self._of.values():
            sessions.leave(worker_state)
