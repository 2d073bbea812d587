"""The KV tree of a stand-in engine: pages found by their content, least recently used first out.

A page is named by the hash of all tokens up to its end and the tenant's salt, so equal prefixes
have equal names on all workers, as in SGLang's KV events.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import xxhash

_SIGN: Final = 1 << 63


def page_hashes(tokens: Sequence[int], salt: str, page_size: int) -> list[int]:
    """The names of the full pages of `tokens`, as signed 64-bit integers."""
    content = array("i", tokens).tobytes()
    step = 4 * page_size
    name = xxhash.xxh3_64_digest(salt.encode())
    names = []
    for start in range(0, len(content) - step + 1, step):
        name = xxhash.xxh3_64_digest(name + content[start : start + step])
        names.append(int.from_bytes(name, "big", signed=True))
    return names


class PageTree:
    """Pages held by one worker; at most `capacity` of them.

    Every use moves a page behind all that continue it, so the first in line is always a leaf.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._locks: OrderedDict[int, int] = OrderedDict()  # page -> how many requests use it

    def __len__(self) -> int:
        return len(self._locks)

    def match(self, pages: Sequence[int]) -> int:
        """How many leading pages are held. Changes nothing."""
        for count, page in enumerate(pages):
            if page not in self._locks:
                return count
        return len(pages)

    def touch(self, pages: Sequence[int]) -> None:
        """Count as a use of held pages."""
        for page in reversed(pages):
            self._locks.move_to_end(page)

    def lock(self, pages: Sequence[int]) -> None:
        """Use held pages: they stay until they are unlocked."""
        for page in reversed(pages):
            self._locks[page] += 1
            self._locks.move_to_end(page)

    def unlock(self, pages: Sequence[int]) -> None:
        """End a use of a prompt's pages, from the first on."""
        for page in reversed(pages):
            self._locks[page] -= 1
            self._locks.move_to_end(page)  # also behind those added meanwhile

    def make_room(self, count: int) -> list[int]:
        """Evict until `count` more pages fit; returns what went, leaves first.

        Raises MemoryError if pages in use leave too little.
        """
        needed = len(self._locks) + count - self.capacity
        gone = []
        if needed > 0:
            for page, users in self._locks.items():
                if not users:
                    gone.append(page)
                    if len(gone) == needed:
                        break
            else:
                raise MemoryError(f"{needed} pages needed, {len(gone)} evictable")
        for page in gone:
            del self._locks[page]
        return gone

    def add(self, pages: Sequence[int]) -> None:
        """Hold new pages, locked once; there must be room."""
        for page in reversed(pages):
            self._locks[page] = 1
        assert len(self._locks) <= self.capacity, "make_room() comes first"

    def held(self) -> set[int]:
        """All pages."""
        return set(self._locks)

    def clear(self) -> None:
        """Forget everything; nothing may be in use."""
        assert not any(self._locks.values()), "pages are in use"
        self._locks.clear()
