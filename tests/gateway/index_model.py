"""A slow and obvious model of the base-token index, and workers that fill both."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ps_sglang.gateway.index.base_index import BaseIndex
from ps_sglang.gateway.index.lookup import PrefixMatch
from ps_sglang.gateway.index.texts import TokenTexts

# Tokens whose texts start one another, in parts of a character and twice the same.
TABLE = [b"a", b"b", b"ab", b"ba", b"aba", b"\xc3", b"\xa4", "ä".encode(), b"a", b"bb"]

Key = tuple[str, tuple[int, ...]]
"""A block: its salt, and all tokens up to its end."""


def block_hash(key: Key) -> int:
    """As SGLang's: of the content, a signed integer of 64 bits."""
    return hash(("block", *key))


@dataclass
class Worker:
    """One worker's tree: its blocks, whose parents are all there."""

    name: str
    size: int
    blocks: set[Key] = field(default_factory=set)

    def store(self, index: BaseIndex, salt: str, tokens: Sequence[int]) -> None:
        """Take in all whole blocks of `tokens`; one event says which are new."""
        whole = len(tokens) - len(tokens) % self.size
        keys = [(salt, tuple(tokens[:end])) for end in range(self.size, whole + 1, self.size)]
        new = [key for key in keys if key not in self.blocks]
        if new:
            first = len(keys) - len(new)
            parent = block_hash(keys[first - 1]) if first else None
            ids = list(tokens[first * self.size : whole])
            index.stored(self.name, [block_hash(key) for key in new], parent, ids, self.size, salt)
            self.blocks.update(new)

    def evict(self, index: BaseIndex, source: random.Random) -> None:
        """Drop some leaves and what then becomes a leaf, runs from either end, in one event."""
        hashes: list[int] = []
        for _ in range(source.randrange(1, 4)):
            run = self._leaf_run(source)
            self.blocks.difference_update(run)
            hashes += [block_hash(key) for key in source.choice((run, run[::-1]))]
        index.removed(self.name, hashes)

    def _leaf_run(self, source: random.Random) -> list[Key]:
        parents = {(salt, ids[: -self.size]) for salt, ids in self.blocks}
        leaves = sorted(self.blocks - parents)
        if not leaves:
            return []
        run = [source.choice(leaves)]
        for _ in range(source.randrange(4)):
            salt, ids = run[0]
            parent = (salt, ids[: -self.size])
            beside = [
                one for one in self.blocks if one != run[0] and _parent(one, self.size) == parent
            ]
            if parent not in self.blocks or beside:
                break
            run.insert(0, parent)
        return run


def _parent(key: Key, size: int) -> Key:
    return key[0], key[1][:-size]


def held(workers: Sequence[Worker], text: bytes, salt: str) -> dict[str, PrefixMatch]:
    """What `BaseIndex.match` must answer, by looking at every block."""
    found = {}
    for worker in workers:
        prefixes = list(_prefixes(worker, text, salt))
        if prefixes:
            found[worker.name] = max(prefixes)
    return found


def _prefixes(worker: Worker, text: bytes, salt: str) -> Iterator[PrefixMatch]:
    for its_salt, ids in worker.blocks:
        own = b"".join(TABLE[one] for one in ids)
        if its_salt == salt and text.startswith(own):
            yield PrefixMatch(len(ids), len(own))


def new_index(workers: Sequence[Worker], roles: Sequence[str]) -> BaseIndex:
    """An index that knows the workers."""
    index = BaseIndex(TokenTexts(TABLE))
    for worker, role in zip(workers, roles, strict=True):
        index.add_worker(worker.name, role)
    return index
