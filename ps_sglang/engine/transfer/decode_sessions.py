"""The decode workers that ask a prefill worker for pages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ps_sglang.engine.transfer.failure_detector import FailureDetector
from ps_sglang.engine.transfer.limits import TransferLimits
from ps_sglang.engine.transfer.messages import Register, reply_endpoint


@dataclass
class DecodeSession:
    """A decode worker process."""

    peer: str  # what it calls this prefill worker
    incompatibility: str | None  # why no page may go to it
    heard_at: float


class DecodeSessions:
    """Who has registered, whether its memory fits, and whether it still lives."""

    def __init__(
        self, *, base_fingerprint: str, page_bytes: list[int], aux_bytes: list[int],
        clock: Callable[[], float], limits: TransferLimits,
    ) -> None:  # fmt: skip
        """No session yet. See `lender.Lender` for the arguments."""
        self._base_fingerprint = base_fingerprint
        self._page_bytes, self._aux_bytes = page_bytes, aux_bytes
        self._clock = clock
        self._sessions: dict[str, DecodeSession] = {}
        self._failure_detector = FailureDetector(clock, limits)

    def register(self, message: Register) -> None:
        """A decode worker registers."""
        incompatibility = self._incompatibility(message)
        self._sessions[message.session] = DecodeSession(
            message.peer, incompatibility, self._clock()
        )

    def heard(self, name: str) -> DecodeSession | None:
        """The session that a message came from, or None if it has not registered."""
        session = self._sessions.get(name)
        if session is not None:
            session.heard_at = self._clock()
        return session

    def expire(self) -> list[str]:
        """Sessions that were not heard of for too long, which are over."""
        dead = self._failure_detector.dead(self._sessions)
        for name in dead:
            del self._sessions[name]
        return dead

    def _incompatibility(self, peer: Register) -> str | None:
        """Why pages must not go to this peer, or None (invariant I5 at connect time)."""
        endpoint = reply_endpoint(peer.session)
        if peer.base_fingerprint != self._base_fingerprint:
            return (
                f"decode worker {endpoint} expects KV of base "
                f"{peer.base_fingerprint or 'unknown'}, but this prefill worker serves base "
                f"{self._base_fingerprint or 'unknown'}"
            )
        if peer.page_item_lens != self._page_bytes:
            return (
                f"decode worker {endpoint} lays out a KV page as {_layout(peer.page_item_lens)}, "
                f"this prefill worker as {_layout(self._page_bytes)}"
            )
        if peer.aux_item_lens != self._aux_bytes:
            return f"decode worker {endpoint} has another metadata layout"
        return None


def _layout(row_bytes: list[int]) -> str:
    return f"{len(row_bytes)} buffers of {sorted(set(row_bytes))} bytes"
