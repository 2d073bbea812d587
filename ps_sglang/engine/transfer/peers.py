"""Prefill workers that a decode worker pulls from: who they are, and where their pages are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from ps_sglang.engine.transfer.failure_detector import FailureDetector
from ps_sglang.engine.transfer.heap import keep_freed_frames
from ps_sglang.engine.transfer.limits import TransferLimits
from ps_sglang.engine.transfer.messages import Alive, Memory, Message, Register
from ps_sglang.engine.transfer.page_memory import PageMemory, PeerPool

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Peer:
    """One prefill worker."""

    endpoint: str
    heard_at: float
    incarnation: str | None = None  # of its process, once it answered Register
    source: PeerPool = None  # None: pages come over TCP
    register_at: float = 0.0
    beat_at: float = 0.0
    progress_at: float = 0.0  # when pages came last

    @property
    def mailbox(self) -> str:
        """The address for what only its scheduler waits for."""
        return self.endpoint if self.incarnation is None else f"{self.endpoint}#{self.incarnation}"


class Peers:
    """Registers with prefill workers, maps their pools, and asks whether they are there."""

    def __init__(
        self, pages: PageMemory, *, session: str, base_fingerprint: str, aux_bytes: list[int],
        send: Callable[[str, Message], None], clock: Callable[[], float], limits: TransferLimits,
    ) -> None:  # fmt: skip
        """No peer yet. See `reader.Reader` for the arguments."""
        self._session = session
        self._base_fingerprint = base_fingerprint
        self._pages, self._aux_bytes = pages, aux_bytes
        self._send = send
        self._clock = clock
        self._limits = limits
        self._peers: dict[str, Peer] = {}
        self._failure_detector = FailureDetector(clock, limits)

    def find(self, endpoint: str, now: float) -> Peer:
        """A peer by its endpoint; a new one is registered with."""
        peer = self._peers.get(endpoint)
        if peer is None:
            peer = self._peers[endpoint] = Peer(endpoint, heard_at=now)
            self.register(peer, now)
        return peer

    def get(self, endpoint: str) -> Peer | None:
        """A peer that was found before."""
        return self._peers.get(endpoint)

    def forget(self, peer: Peer) -> None:
        """Talk to a peer no more."""
        del self._peers[peer.endpoint]

    def register(self, peer: Peer, now: float) -> None:
        """Send Register, unless that was sent a moment ago."""
        if now < peer.register_at:
            return
        peer.register_at = now + self._limits.retry_s
        self._send(
            peer.endpoint,
            Register(
                session=self._session,
                peer=peer.endpoint,
                base_fingerprint=self._base_fingerprint,
                page_item_lens=self._pages.row_bytes,
                aux_item_lens=self._aux_bytes,
            ),
        )

    def admit(self, peer: Peer, memory: Memory) -> bool:
        """Take in what a peer answers to Register; returns whether its process is a new one."""
        if memory.incarnation == peer.incarnation:
            return False
        restarted = peer.incarnation is not None
        peer.incarnation = memory.incarnation
        peer.source = self._open(peer.endpoint, memory.pool)
        return restarted

    def _open(self, endpoint: str, description: msgspec.Raw) -> PeerPool:
        try:
            source = self._pages.open(description)
        except (OSError, ValueError) as error:  # ValueError: another layout
            keep_freed_frames()
            logger.info("KV pages of prefill worker %s come over TCP: %s", endpoint, error)
            return None
        logger.info("KV pages of prefill worker %s are copied from its pool: same host", endpoint)
        return source

    def tend(self) -> list[Peer]:
        """Send what is due; returns the dead peers, which must register anew from then on."""
        now = self._clock()
        dead = [self._peers[endpoint] for endpoint in self._failure_detector.dead(self._peers)]
        for peer in dead:
            peer.incarnation = peer.source = None
            peer.heard_at = now
        for peer in self._peers.values():
            if peer.incarnation is None:
                self.register(peer, now)
            elif now >= peer.beat_at:
                peer.beat_at = now + self._limits.beat_s
                self._send(peer.endpoint, Alive(self._session, peer.endpoint))
        return dead
