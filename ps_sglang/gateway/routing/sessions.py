"""Conversations: which workers each stays with.

A client may name a conversation, by the header `x-session-id` or the body's `session_id`; a
request that sends both must send the same. Sessions are remembered until they end, until they are
idle for IDLE_SECONDS, or until MOST newer ones have come.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from ps_sglang.gateway.errors import BadRequest, GatewayError
from ps_sglang.gateway.routing.pool import AnyWorkerState, Decode, Prefill

HEADER = "x-session-id"
IDLE_SECONDS = 3600.0
MOST = 65_536
_LONGEST_ID = 256


@dataclass(eq=False, slots=True)
class Session:
    """A conversation: its prefill worker, its decode worker of each decoder, where it has been.

    `ended` is what its requests get once it is over.
    """

    id: str
    prefill: Prefill | None = None
    decode: dict[str, Decode] = field(default_factory=dict)
    visited: set[AnyWorkerState] = field(default_factory=set)
    used: float = 0.0
    ended: GatewayError | None = None

    def goes_to(self, prefill: Prefill, decode: Decode) -> None:
        """A request of this conversation was sent there; the next ones follow it."""
        self.prefill = prefill
        self.decode[decode.worker.decoder] = decode
        self.visited.add(prefill)
        self.visited.add(decode)


class Sessions:
    """The conversations that go on, the longest idle first."""

    def __init__(
        self,
        *,
        most: int = MOST,
        idle_seconds: float = IDLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def use(self, id: str) -> Session:
        """The session of that id, a new one if there is none; it counts as used now."""
        session = self._sessions.get(id)
        if session is None:
            session = self._sessions[id] = Session(id)
        session.used = self._clock()
        self._sessions.move_to_end(id)
        self._forget_idle(session.used - self._idle_seconds)
        return session

    def get(self, id: str) -> Session | None:
        """The session of that id, if there is one."""
        return self._sessions.get(id)

    def end(self, session: Session, error: GatewayError) -> None:
        """The session is over; one that has its id and began after it is left alone."""
        session.ended = error
        if self._sessions.get(session.id) is session:
            del self._sessions[session.id]

    def leave(self, worker_state: AnyWorkerState) -> None:
        """A worker has left the pool: no conversation holds on to it."""
        for session in self._sessions.values():
            session.visited.discard(worker_state)
            if session.prefill is worker_state:
                session.prefill = None
            session.decode = {
                k: one for k, one in session.decode.items() if one is not worker_state
            }

    def _forget_idle(self, before: float) -> None:
        while True:
            oldest = next(iter(self._sessions.values()))
            if oldest.used >= before and len(self._sessions) <= self._most:
                return
            del self._sessions[oldest.id]


def session_id(in_body: object, in_header: str | None) -> str | None:
    """The session that a request names; raises BadRequest."""
    if in_body is not None and not isinstance(in_body, str):
        raise BadRequest(f"`session_id` must be a text, not {in_body!r}.", param="session_id")
    if in_body is not None and in_header is not None and in_body != in_header:
        raise BadRequest(
            f"The body's `session_id` is {in_body!r}, but the header `{HEADER}` says "
            f"{in_header!r}: send one of them, or the same in both.",
            param="session_id",
        )
    given = in_header if in_body is None else in_body
    if given is not None and not (given and len(given) <= _LONGEST_ID and given.isprintable()):
        raise BadRequest(
            f"A session id must have 1 to {_LONGEST_ID} printable characters, not {given!r}.",
            param="session_id",
        )
    return given
