"""What the tree takes in and lets go, as KV events.

Takes the place of SGLang's recorder in the tree's core. That one makes an event of every page
before it joins them, and compiles a C++ extension in the worker to hash them: at page size 1 it
costs more than the tree itself. Here an event is made per node.

A block is named by a hash of all the tokens up to its end and of the tenant's salt, so equal
blocks of two workers have equal names.
"""

from __future__ import annotations

from array import array
from hashlib import sha256
from struct import unpack
from typing import Any, Final

from ps_sglang.events.messages import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent

_DEVICE: Final = "GPU"  # SGLang's name for the pool itself, on a CPU too; others are its copies
_ID_BYTES: Final = 8


class TreeEvents:
    """The events since they were last taken; the interface is that of SGLang's recorder.

    Prefixes under an `extra_key` are left out: the gateway cannot name them (it folds the
    key into the salt), so it could send no request that finds them.
    """

    enabled: Final = True

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._events: list[KvEvent] = []

    def record_store(
        self, node: Any, medium: str | None = None, *, session_id: str | None = None
    ) -> None:
        """A node's pages are in the tree now, behind those of its parent."""
        if not self._is_published(node, medium):
            return
        parent = node.parent.event_hash_value
        self._events.append(
            BlockStored(
                block_hashes=self._blocks(node).tolist(),
                parent_block_hash=parent[-1] if parent else None,
                token_ids=node.key.raw_token_ids().tolist(),
                block_size=self._page_size,
                medium=_DEVICE,
                cache_salt=node.key.cache_salt,
                session_id=session_id,
            )
        )

    def record_remove(self, node: Any, medium: str | None = None) -> None:
        """A node's pages have left the tree."""
        if self._is_published(node, medium):
            self._events.append(BlockRemoved(self._blocks(node).tolist(), _DEVICE))

    def record_all_cleared(self) -> None:
        """The tree is empty now."""
        self._events.append(AllBlocksCleared())

    def record_everything(self, root: Any) -> None:
        """Record all that the tree under `root` holds once more, from nothing, parents first."""
        self.record_all_cleared()
        ahead = list(root.children.values())
        while ahead:
            node = ahead.pop()
            if not node.evicted:
                self.record_store(node)
                ahead += node.children.values()

    def take(self) -> list[KvEvent]:
        """The events since the last call, the oldest first."""
        events, self._events = self._events, []
        return events

    def _is_published(self, node: Any, medium: str | None) -> bool:
        return medium in (None, _DEVICE) and node.key.extra_key is None

    def _blocks(self, node: Any) -> array[int]:
        """The ids of a node's blocks, kept at the node; SGLang cuts them where it splits it."""
        if node.event_hash_value is None:
            parent = node.parent.event_hash_value
            previous = parent[-1].to_bytes(_ID_BYTES, "big", signed=True) if parent else _seed(node)
            node.event_hash_value = self._chain(previous, node.key.raw_token_ids().tobytes())
        blocks: array[int] = node.event_hash_value
        return blocks

    def _chain(self, previous: bytes, tokens: bytes) -> array[int]:
        step = self._page_size * array("q").itemsize
        ids = bytearray()
        for start in range(0, len(tokens), step):
            previous = sha256(previous + tokens[start : start + step]).digest()[:_ID_BYTES]
            ids += previous
        return array("q", unpack(f">{len(ids) // _ID_BYTES}q", ids))


def _seed(node: Any) -> bytes:
    salt = node.key.cache_salt
    return b"" if salt is None else sha256(b"ps_sglang salt " + salt.encode()).digest()
