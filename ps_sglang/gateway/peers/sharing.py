"""What each gateway process tells of its requests, and what it makes of those of the others.

A request of another process counts here as one that was sent from here would: as load of its
workers, as a prompt that they hold or are about to hold, as a turn of its conversation, and against
the limits. What a process has told ends with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import cast

import msgspec

from ps_sglang.gateway.access.limiter import RequestLimiter, Unfinished
from ps_sglang.gateway.index.cache_index import CacheIndex
from ps_sglang.gateway.index.lookup import NO_MATCH
from ps_sglang.gateway.index.prompt import Prompt
from ps_sglang.gateway.peers.messages import (
    Began,
    Ended,
    Forgotten,
    KeyUsage,
    Message,
    SessionOver,
    SessionPlaced,
    Settled,
)
from ps_sglang.gateway.peers.peers import GatewayPeers
from ps_sglang.gateway.routing.decoder_state import DecoderState
from ps_sglang.gateway.routing.pool import WorkerPool
from ps_sglang.gateway.routing.router import Route, Router
from ps_sglang.gateway.routing.sessions import Session, TenantSessions
from ps_sglang.gateway.routing.worker_state import AnyWorkerState, Decode, Prefill


@dataclass(eq=False)
class _Remote:
    """A sample that another process has sent to its workers, see `router.PlacedSample`."""

    prefill: Prefill | None
    prefills: AnyWorkerState
    decode: Decode
    new_tokens: int
    moved_tokens: int
    is_prefilled: bool
    prompt: Prompt
    served: DecoderState | None
    is_moving: bool = True


class Sharing:
    """Tells the others of the samples, sessions and limits of this process, and counts theirs.

    `end_session` is called with each session that was ended elsewhere.
    """

    def __init__(
        self,
        peers: GatewayPeers,
        pool: WorkerPool,
        router: Router,
        sessions: TenantSessions,
        limiter: RequestLimiter,
        cache_index: CacheIndex,
        end_session: Callable[[Session], int],
    ) -> None:
        self._peers = peers
        self._pool = pool
        self._router = router
        self._sessions = sessions
        self._limiter = limiter
        self._cache_index = cache_index
        self._end_session = end_session
        self._number = 0
        self._own: dict[Route, Began] = {}
        self._remote: dict[tuple[int, int], _Remote] = {}
        self._posts: dict[tuple[int, str], int] = {}
        self._is_hearing = False
        if peers.is_alone:
            return
        router.listeners.append(self)
        sessions.ended.append(self._session_ended)
        limiter.changed = self._usage_changed
        cache_index.forgotten.append(lambda worker: peers.send(Forgotten(worker)))
        peers.greetings.append(self._greet)
        peers.lost.append(self._lost)
        peers.handlers |= {
            Began: self._began,
            Settled: self._settled,
            Ended: self._ended,
            SessionPlaced: self._placed,
            SessionOver: self._over,
            KeyUsage: self._used,
            Forgotten: self._forgotten,
        }

    # -- what happens here -----------------------------------------------------------------------

    def chosen(self, route: Route, session: Session | None) -> None:
        """A sample is about to go to its workers."""
        self._number += 1
        began = self._own[route] = Began(
            self._number,
            route.decoder,
            None if route.prefill is None else route.prefill.name,
            route.decode.name,
            route.new_tokens,
            route.moved_tokens,
            route.prompt.blocks,
        )
        self._peers.send(began)
        # A conversation without a name of its client's has one turn.
        if session is not None and self._sessions.of(session.tenant).get(session.id) is session:
            self._peers.send(self._placement(session))

    def settled(self, route: Route, arrived: bool) -> None:
        """Its prompt is prefilled and moved, or never will be."""
        if (began := self._own.get(route)) is not None:
            self._peers.send(Settled(began.number, arrived))

    def ended(self, route: Route) -> None:
        """Neither worker works on it any more."""
        if (began := self._own.pop(route, None)) is not None:
            self._peers.send(Ended(began.number))

    def _session_ended(self, session: Session) -> None:
        if not self._is_hearing:  # one that has begun anew there must not end, too
            self._peers.send(SessionOver(session.tenant, session.id))

    def _usage_changed(self, key: str) -> None:
        self._peers.send_latest(key, partial(self._usage, key))

    def _usage(self, key: str) -> KeyUsage:
        unfinished, posts, per_minute = self._limiter.of_key(key)
        return KeyUsage(
            key,
            unfinished.requests,
            unfinished.queued,
            unfinished.queued_tokens,
            posts,
            per_minute,
        )

    def _placement(self, session: Session) -> SessionPlaced:
        return SessionPlaced(
            session.tenant,
            session.id,
            self._sessions.of(session.tenant).ancestors(session.id),
            None if session.prefill is None else session.prefill.name,
            {decoder: one.name for decoder, one in session.decode.items()},
            tuple(one.name for one in session.visited),
        )

    def _greet(self, process: int) -> Iterator[Message]:
        for route, began in self._own.items():
            yield began
            if route.is_handed_over:
                yield Settled(began.number, arrived=True)
        for sessions in self._sessions:
            yield from map(self._placement, sessions)
        for key in self._limiter.used_keys:  # its earlier requests do not count anew
            yield msgspec.structs.replace(self._usage(key), per_minute=0)

    # -- what happens elsewhere ------------------------------------------------------------------

    def _began(self, process: int, message: Message) -> None:
        assert isinstance(message, Began)
        decode = self._pool.get(message.decode)
        prefill = decode if message.prefill is None else self._pool.get(message.prefill)
        if decode is None or prefill is None:
            return  # it has left here, and will there
        remote = self._remote[process, message.number] = _Remote(
            None if message.prefill is None else cast("Prefill", prefill),
            prefill,
            cast("Decode", decode),
            message.new_tokens,
            message.moved_tokens,
            bool(message.new_tokens or message.moved_tokens),
            Prompt.of_blocks(message.blocks),
            self._pool.decoders.get(message.decoder),
        )
        if remote.served is not None:
            remote.served.requests.begin()
        self._cache_index.turn(remote.prompt, message.decoder, NO_MATCH)
        self._router.begin(remote)

    def _settled(self, process: int, message: Message) -> None:
        assert isinstance(message, Settled)
        remote = self._remote.get((process, message.number))
        if remote is not None and remote.is_moving:
            remote.is_moving = False
            self._router.settle(remote, message.arrived)

    def _ended(self, process: int, message: Message) -> None:
        assert isinstance(message, Ended)
        self._drop(process, message.number)

    def _drop(self, process: int, number: int) -> None:
        remote = self._remote.pop((process, number), None)
        if remote is None:
            return
        if remote.is_moving:
            self._router.settle(remote, arrived=False)
        remote.decode.end()
        if remote.served is not None:
            remote.served.requests.end()

    def _placed(self, process: int, message: Message) -> None:
        assert isinstance(message, SessionPlaced)
        self._sessions.of(message.tenant).place(
            message.id,
            message.ancestors,
            None if message.prefill is None else self._pool.get(message.prefill),
            {
                decoder: cast("Decode", state)
                for decoder, name in message.decode.items()
                if (state := self._pool.get(name)) is not None
            },
            [state for name in message.visited if (state := self._pool.get(name)) is not None],
        )

    def _over(self, process: int, message: Message) -> None:
        assert isinstance(message, SessionOver)
        session = self._sessions.of(message.tenant).get(message.id)
        if session is not None:
            self.end_session(session)

    def end_session(self, session: Session) -> int:
        """End a session that is ended elsewhere; returns how many samples that aborts."""
        self._is_hearing = True
        try:
            return self._end_session(session)
        finally:
            self._is_hearing = False

    def _used(self, process: int, message: Message) -> None:
        assert isinstance(message, KeyUsage)
        unfinished = Unfinished(message.requests, message.queued, message.queued_tokens)
        self._limiter.elsewhere.setdefault(message.key, {})[process] = unfinished
        before = self._posts.get((process, message.key), 0)
        self._posts[process, message.key] = message.posts
        if message.per_minute:
            more = message.posts - before
            self._limiter.posted_elsewhere(message.key, more, message.per_minute)

    def _forgotten(self, process: int, message: Message) -> None:
        assert isinstance(message, Forgotten)
        self._cache_index.forget_estimate(message.worker)

    def _lost(self, process: int) -> None:
        for sender, number in list(self._remote):
            if sender == process:
                self._drop(sender, number)
        for used in self._limiter.elsewhere.values():
            used.pop(process, None)
        self._posts = {key: posts for key, posts in self._posts.items() if key[0] != process}
