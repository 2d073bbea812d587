"""What a worker is believed to hold, from what was sent to it.

Used where a worker's events cannot tell: for prompts in flight, whose events are yet to come, for
workers without live events, and for prompts whose bytes are not those of their tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

CAPACITY: Final = 65_536
"""Blocks remembered of a worker: 32 MiB of text, about 10 MB of memory."""
SECONDS: Final = 600.0
"""How long a worker without events is believed to keep a prompt that nobody asks for again."""
SETTLING_SECONDS: Final = 0.5
"""How long after a prefill its events may take: they follow the step that ended it.

Longer would hide what a full pool evicts meanwhile.
"""


class Estimate:
    """The blocks that one worker is believed to hold, least recently used first."""

    def __init__(self, clock: Callable[[], float], capacity: int = CAPACITY) -> None:
        self._clock = clock
        self._capacity = capacity
        self._coming: dict[int, int] = {}  # block -> how many prompts bring it
        self._arrived: OrderedDict[int, float] = OrderedDict()

    def __len__(self) -> int:
        """Blocks that have arrived."""
        return len(self._arrived)

    def sent(self, blocks: Sequence[int]) -> None:
        """The worker is about to hold these blocks; `settled` must follow."""
        coming = self._coming
        for block in blocks:
            coming[block] = coming.get(block, 0) + 1

    def settled(self, blocks: Sequence[int], arrived: bool) -> None:
        """What was `sent` has arrived, or never will."""
        coming = self._coming
        for block in blocks:
            left = coming.pop(block, 1) - 1
            if left:
                coming[block] = left
        if arrived:
            self.arrived(blocks)

    def arrived(self, blocks: Sequence[int]) -> None:
        """The worker holds these blocks now."""
        now, arrivals = self._clock(), self._arrived
        # Last block first: a prefix must outlive what continues it.
        for block in reversed(blocks):
            arrivals[block] = now
            arrivals.move_to_end(block)
        while len(arrivals) > self._capacity:
            arrivals.popitem(last=False)

    def knows(self, block: int) -> bool:
        """Whether the worker is believed to hold a block, or did a while ago."""
        return block in self._coming or block in self._arrived

    def match(self, blocks: Sequence[int], seconds: float) -> int:
        """How many leading blocks are held: on their way, or arrived within `seconds`."""
        coming, arrived = self._coming, self._arrived
        oldest = self._clock() - seconds
        never = float("-inf")

        def lacks(block: int) -> bool:
            return block not in coming and arrived.get(block, never) < oldest

        # Whoever holds a block holds those before it.
        return bisect_left(blocks, True, key=lacks)

    def forget(self) -> None:
        """The worker's cache is empty; what is on its way still comes."""
        self._arrived.clear()


class FirstSenders:
    """Which decoder's turn brought a block in first: what the others need not prefill again."""

    def __init__(self, capacity: int = 2 * CAPACITY) -> None:
        self._capacity = capacity
        self._first: OrderedDict[int, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._first)

    def turn(self, blocks: Sequence[int], decoder: str) -> list[bool]:
        """A decoder sends blocks; returns which of them another decoder sent first."""
        others = []
        for block in reversed(blocks):
            first = self._first.setdefault(block, decoder)
            self._first.move_to_end(block)
            others.append(first != decoder)
        while len(self._first) > self._capacity:
            self._first.popitem(last=False)
        return others[::-1]
