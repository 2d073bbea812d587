"""A run of blocks in the base-token index's radix tree."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence

LONGEST = 256
"""Blocks in one segment at most: it bounds what a split, a merge or a search of one costs."""


class Segment:
    """Consecutive blocks without a branch among them, and which workers hold how many.

    `hashes` are the blocks' hashes, `text` the bytes that their tokens stand for, `ends[i]` where
    block i ends in `text`, `size` the tokens of a block. `held[worker]` counts the leading blocks
    that the worker holds, never 0. A root has no blocks and no parent.

    `number` names the segment in the map of blocks. That map and the arrays here hold plain numbers
    only, so that Python's garbage collector has no million objects to look at.

    Children are found by the text of their first block, `lengths` being every length that this
    key has had. Several children may share a key, and one's key may start another's: other tokens
    of the same text.
    """

    __slots__ = (
        "children",
        "ends",
        "hashes",
        "holders",
        "lengths",
        "number",
        "parent",
        "size",
        "text",
    )

    def __init__(
        self,
        number: int,
        parent: Segment | None = None,
        size: int = 0,
    ) -> None:
        self.number = number
        self.parent = parent
        self.size = size
        self.hashes = array("q")
        self.text = b""
        self.ends = array("I")
        self.holders: dict[str, int] = {}
        self.children: dict[bytes, list[Segment]] | None = None
        self.lengths: tuple[int, ...] = ()

    @property
    def key(self) -> bytes:
        """The text of the first block."""
        return self.text[: self.ends[0]]

    def text_end(self, blocks: int) -> int:
        """How many bytes the first `blocks` blocks stand for."""
        return self.ends[blocks - 1] if blocks else 0

    def append(self, hashes: array[int], texts: Sequence[bytes]) -> None:
        """Add blocks at the end; a segment that has a key already keeps it."""
        self.hashes += hashes
        end = len(self.text)
        for text in texts:
            end += len(text)
            self.ends.append(end)
        self.text += b"".join(texts)

    def cut(self, blocks: int) -> array[int]:
        """Keep the first `blocks` blocks; returns the hashes of the others."""
        dropped = self.hashes[blocks:]
        del self.hashes[blocks:]
        self.text = self.text[: self.text_end(blocks)]
        del self.ends[blocks:]
        return dropped

    def split(self, at: int, number: int) -> Segment:
        """Move the first `at` blocks to a new segment in this one's place; returns it."""
        assert self.parent is not None
        head = Segment(number, self.parent, self.size)
        end = self.ends[at - 1]
        head.hashes, self.hashes = self.hashes[:at], self.hashes[at:]
        head.text, self.text = self.text[:end], self.text[end:]
        head.ends, self.ends = self.ends[:at], array("I", [one - end for one in self.ends[at:]])
        head.holders = {worker: min(count, at) for worker, count in self.holders.items()}
        self.holders = {worker: count - at for worker, count in self.holders.items() if count > at}
        self.parent.replace_child(self, head)
        self.parent = head
        head.add_child(self)
        return head

    def join(self, head: Segment) -> array[int]:
        """Undo `split`: take the place of the parent, whose only child this is.

        Returns the hashes that moved here. `head` holds nothing from then on.
        """
        assert head.parent is not None
        moved = head.hashes
        end = len(head.text)
        self.hashes, self.text = moved + self.hashes, head.text + self.text
        self.ends = head.ends + array("I", [one + end for one in self.ends])
        self.holders = {
            worker: n + self.holders.get(worker, 0) for worker, n in head.holders.items()
        }
        head.parent.replace_child(head, self)
        self.parent = head.parent
        head.holders = {}
        return moved

    def matching(self, text: bytes, at: int) -> int:
        """How many leading blocks continue `text` at byte `at`."""
        if text.startswith(self.text, at):
            return len(self.hashes)

        # Of two texts that differ somewhere, find the last block that lies before the difference.
        def differs(end: int) -> bool:
            return not text.startswith(self.text[:end], at)

        return bisect_left(self.ends, True, hi=len(self.ends) - 1, key=differs)

    def add_child(self, child: Segment) -> None:
        """Make `child` findable under this segment."""
        if self.children is None:
            self.children = {}
        key = child.key
        self.children.setdefault(key, []).append(child)
        if len(key) not in self.lengths:
            self.lengths += (len(key),)

    def remove_child(self, child: Segment) -> None:
        """Undo `add_child`. `child` must still have the key it was added with."""
        assert self.children is not None
        key = child.key
        alike = self.children[key]
        alike.remove(child)
        if not alike:
            del self.children[key]
        if not self.children:
            self.children, self.lengths = None, ()

    def replace_child(self, old: Segment, new: Segment) -> None:
        """Put `new`, whose key is the same, in the place of `old`."""
        assert self.children is not None
        alike = self.children[new.key]
        alike[alike.index(old)] = new

    def only_child(self) -> Segment | None:
        """The child, if there is exactly one."""
        if self.children is None or len(self.children) > 1:
            return None
        (alike,) = self.children.values()
        return alike[0] if len(alike) == 1 else None

    def all_children(self) -> list[Segment]:
        """Every child."""
        return [child for alike in (self.children or {}).values() for child in alike]


class Root(Segment):
    """Where the prompts of one salt begin."""

    __slots__ = ("salt",)

    def __init__(self, salt: str) -> None:
        super().__init__(-1)
        self.salt = salt
