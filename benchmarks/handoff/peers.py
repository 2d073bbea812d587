"""The engines that ours is compared with, where they are installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from benchmarks.handoff import mooncake, nixl
from benchmarks.handoff.cases import Pages
from benchmarks.handoff.pool import Pool


class Peer(Protocol):
    """A process's end of such an engine; `address` is for the other end to connect to."""

    address: Any
    polls: bool  # whether a receiver must call `progress` all the time

    def connect(self, peer: Any) -> None:
        """Remember where pages go."""

    def progress(self) -> None:
        """What a receiver does while it waits."""

    def send(self, pages: Pages, targets: list[int], target_pages: Pages, page_size: int) -> None:
        """Move pages into the connected process's pool, and return when they are there."""


KINDS: Final[dict[str, Callable[[Pool], Peer]]] = {
    "mooncake_tcp": mooncake.Engine,
    "nixl": nixl.Agent,
}


def missing() -> dict[str, str]:
    """Peers that are not installed, and how to get them."""
    reasons = {"mooncake_tcp": mooncake.missing(), "nixl": nixl.missing()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def start(names: list[str], pool: Pool) -> dict[str, Peer]:
    """This process's ends of peers."""
    return {name: KINDS[name](pool) for name in names}
