"""Who receives a worker's event stream, and the size of the pieces in which it comes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from msgspec.structs import replace

from ps_sglang.events.messages import AllBlocksCleared, BlockRemoved, KvEvent, Span

MOST_BLOCKS: Final = 128
"""Blocks of a piece, some 0.2 ms of work: other tasks of the event loop run between two."""


class EventListener(Protocol):
    """What an `EventSubscriber` calls, in the thread of the event loop."""

    def check_incarnation(self, incarnation: str) -> None:
        """Called before events of a process; raises EventStreamError if it is another worker."""
        ...

    def kv(self, event: KvEvent) -> None:
        """The next event; raises ValueError if it does not fit those before it."""
        ...

    def span(self, record: Span) -> None:
        """Where a request's time went."""
        ...

    def live(self) -> None:
        """The events so far are all of them."""
        ...

    def lost(self, reason: str) -> None:
        """It is unknown what the worker's tree holds."""
        ...


def pieces(event: KvEvent) -> Iterator[KvEvent]:
    """The same as several events of at most MOST_BLOCKS blocks each."""
    if isinstance(event, AllBlocksCleared) or len(event.block_hashes) <= MOST_BLOCKS:
        yield event
        return
    whole = event.block_hashes
    for start in range(0, len(whole), MOST_BLOCKS):
        hashes = whole[start : start + MOST_BLOCKS]
        if isinstance(event, BlockRemoved):
            yield replace(event, block_hashes=hashes)
        else:
            first, size = start * event.block_size, len(hashes) * event.block_size
            yield replace(
                event,
                block_hashes=hashes,
                parent_block_hash=whole[start - 1] if start else event.parent_block_hash,
                token_ids=event.token_ids[first : first + size],
            )
