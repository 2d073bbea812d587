"""The base-token index: what every worker's tree holds, mirrored from their KV events.

One radix tree for all workers, keyed on base tokens and the tenant's salt, never on a decoder.
SGLang's block hashes are hashes of content (all tokens up to the block's end, and the salt): equal
blocks of two workers have equal hashes, so one map from hash to segment serves every event.

A worker's tree takes in blocks behind their parent and evicts leaves, so what a worker holds is
closed under prefixes, and per segment a count of leading blocks says it all. Events that break
this are refused (`OutOfSync`) or, for removals, taken at their word: what lies behind a removed
block cannot be matched any more, so it is dropped as well.

Blocks are addressed by the text that their tokens stand for: prompts need not be tokenized to be
looked up. What nobody holds leaves the index at once.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Protocol

from ps_sglang.gateway.index.lookup import PrefixMatch, match_prefix
from ps_sglang.gateway.index.segment import LONGEST, Root, Segment

BYTES_PER_TOKEN = 4.0
"""Until something has been stored."""


class OutOfSync(ValueError):
    """An event does not fit what its worker held before: an event is missing."""


class Texts(Protocol):
    """What tokens stand for."""

    def of(self, token_ids: Sequence[int], block: int) -> list[bytes]:
        """The bytes of each `block` consecutive tokens."""
        ...


class BaseIndex:
    """Which blocks each worker holds; see the module's docstring. For one thread."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._roots: dict[str, Root] = {}
        self._numbers: dict[int, int] = {}
        self._segments: dict[int, Segment] = {}
        self._fresh = count()
        self._roles: dict[str, str] = {}
        self._tokens: dict[str, int] = {}
        self._distinct: dict[str, int] = {}
        self._seen = PrefixMatch(0, 0)

    def __len__(self) -> int:
        """Blocks held by anybody."""
        return len(self._numbers)

    @property
    def roots(self) -> Mapping[str, Root]:
        """Where the prompts of each salt begin; for reading only."""
        return self._roots

    def add_worker(self, worker: str, role: str) -> None:
        """Make a worker known; workers of one role are counted together by `duplicated`."""
        self._roles[worker] = role
        self._tokens[worker] = 0
        self._distinct.setdefault(role, 0)

    def drop_worker(self, worker: str) -> None:
        """Forget a worker and all it holds."""
        self.cleared(worker)
        del self._roles[worker], self._tokens[worker]

    @property
    def bytes_per_token(self) -> float:
        """How many bytes a token stands for, on average over what has been stored so far."""
        tokens, length = self._seen
        return length / tokens if length else BYTES_PER_TOKEN

    def held_tokens(self, worker: str) -> int:
        """Tokens that a worker holds."""
        return self._tokens[worker]

    def duplicated(self, role: str) -> int:
        """Tokens that workers of a role hold beyond the first copy among them."""
        copies = sum(self._tokens[name] for name, its in self._roles.items() if its == role)
        return copies - self._distinct.get(role, 0)

    def match(self, text: bytes, salt: str = "") -> Mapping[str, PrefixMatch]:
        """The longest prefix of `text` that each worker holds, in whole blocks.

        Workers that hold nothing of it are left out. One walk serves all workers; it costs by the
        length of the prompt, not by what the index holds.
        """
        root = self._roots.get(salt)
        return {} if root is None else match_prefix(root, text)

    def stored(
        self,
        worker: str,
        hashes: Sequence[int],
        parent: int | None,
        token_ids: Sequence[int],
        block_size: int,
        salt: str = "",
    ) -> None:
        """A worker took in consecutive blocks behind `parent`, or at the start if that is None.

        Raises OutOfSync if the worker does not hold `parent`, or if the event contradicts itself.
        """
        if not hashes or len(token_ids) != len(hashes) * block_size:
            raise OutOfSync(
                f"{len(hashes)} blocks of {block_size} tokens came with {len(token_ids)} tokens"
            )
        try:
            new_hashes = array("q", hashes)
        except OverflowError as error:
            raise OutOfSync(f"a block's hash has more than 64 bits: {error}") from error
        segment, position = self._parent(worker, parent, salt)
        already_stored = self._known(hashes)
        done = 0
        while done < already_stored:
            block_segment = self._segments[self._numbers[hashes[done]]]
            start = block_segment.hashes.index(hashes[done])
            if block_segment is segment:
                follows = start == position
            else:
                follows = (
                    block_segment.parent is segment and start == len(segment.hashes) - position == 0
                )
            end = min(len(block_segment.hashes), start + already_stored - done)
            after = done + end - start
            same = block_segment.hashes[start:end].tobytes() == new_hashes[done:after].tobytes()
            if not (follows and same):
                raise OutOfSync(
                    f"{worker} stored block {hashes[done]} in another place than before"
                )
            segment, position = block_segment, end
            if segment.holders.get(worker, 0) < position:
                self._set(segment, worker, position)
            done = after
        if already_stored < len(hashes):
            texts = self._texts.of(token_ids[already_stored * block_size :], block_size)
            if position < len(segment.hashes):
                segment = self._split(segment, position)
            tokens, length = self._seen
            self._seen = PrefixMatch(
                tokens + len(texts) * block_size, length + sum(map(len, texts))
            )
            self._grow(worker, segment, new_hashes[already_stored:], texts, block_size)

    def removed(self, worker: str, hashes: list[int]) -> None:
        """A worker dropped blocks. Blocks that it does not hold are skipped."""
        done = 0
        while done < len(hashes):
            segment = self._find(hashes[done])
            cached = segment.holders.get(worker, 0) if segment is not None else 0
            position = (
                segment.hashes.index(hashes[done]) if segment is not None and cached else cached
            )
            if segment is None or position >= cached:
                done += 1
                continue
            # The rest of an evicted run needs no look of its own, in whichever order it comes.
            run = segment.hashes[position:cached].tolist()
            length = len(run)
            if length == 1 or run != hashes[done : done + length]:
                length = _run_back(segment.hashes, position, hashes, done)
                position -= length - 1
            done += length
            self._lower(segment, worker, position)

    def cleared(self, worker: str) -> None:
        """A worker holds nothing any more."""
        for root in list(self._roots.values()):
            for child in root.all_children():
                if worker in child.holders:
                    self._lower(child, worker, 0)

    # -- storing ---------------------------------------------------------------------------------

    def _parent(self, worker: str, parent: int | None, salt: str) -> tuple[Segment, int]:
        """The segment of the parent block, and how many of its blocks the parent ends."""
        if parent is None:
            return self._roots.get(salt) or Root(salt), 0
        segment = self._find(parent)
        if segment is not None:
            position = segment.hashes.index(parent) + 1
            if segment.holders.get(worker, 0) >= position:
                return segment, position
        raise OutOfSync(f"{worker} stored blocks behind block {parent}, which it does not hold")

    def _find(self, block: int) -> Segment | None:
        number = self._numbers.get(block)
        return None if number is None else self._segments[number]

    def _known(self, hashes: Sequence[int]) -> int:
        """How many leading blocks the index has: they come first, as each needs its parent."""
        return bisect_left(hashes, True, key=lambda block: block not in self._numbers)

    def _grow(
        self, worker: str, segment: Segment, hashes: array[int], texts: list[bytes], size: int
    ) -> None:
        """Add new blocks behind a segment."""
        room = 0
        if isinstance(segment, Root):
            self._roots[segment.salt] = segment
        elif segment.children is None and segment.size == size:
            room = min(LONGEST - len(segment.hashes), len(hashes))
        if room:
            self._append(worker, segment, hashes[:room], texts[:room])
        for start in range(room, len(hashes), LONGEST):
            child = Segment(next(self._fresh), segment, size)
            stop = start + LONGEST
            self._append(worker, child, hashes[start:stop], texts[start:stop])
            self._segments[child.number] = child
            segment.add_child(child)
            segment = child

    def _append(
        self, worker: str, segment: Segment, hashes: array[int], texts: list[bytes]
    ) -> None:
        segment.append(hashes, texts)
        self._numbers.update(dict.fromkeys(hashes, segment.number))
        self._set(segment, worker, len(segment.hashes))

    def _split(self, segment: Segment, at: int) -> Segment:
        """Split before block `at`; returns the new first part."""
        head = segment.split(at, next(self._fresh))
        self._segments[head.number] = head
        self._numbers.update(dict.fromkeys(head.hashes, head.number))
        return head

    # -- removing --------------------------------------------------------------------------------

    def _lower(self, segment: Segment, worker: str, blocks: int) -> None:
        """The worker holds `blocks` blocks of this segment at most, and nothing behind them."""
        subtree = [segment]
        for child_segment in subtree:
            subtree += [child for child in child_segment.all_children() if worker in child.holders]
        lost_a_child = []
        for child_segment in reversed(subtree):
            self._set(child_segment, worker, blocks if child_segment is segment else 0)
            most = max(child_segment.holders.values(), default=0)
            if not most and child_segment.parent is not None:
                child_segment.parent.remove_child(child_segment)
                lost_a_child.append(child_segment.parent)
                del self._segments[child_segment.number]
            if most < len(child_segment.hashes):
                for forgotten in child_segment.cut(most):
                    del self._numbers[forgotten]
        # Only now, as joining segments takes away some of those above.
        for child_segment in lost_a_child:
            self._tidy(child_segment)

    def _tidy(self, segment: Segment) -> None:
        """A child left: a root without children goes, a branch that is none any more is joined."""
        if isinstance(segment, Root):
            if segment.children is None:
                self._roots.pop(segment.salt, None)
            return
        child = segment.only_child()
        gone = not segment.holders
        if gone or child is None or child.size != segment.size:
            return
        if len(child.hashes) + len(segment.hashes) <= LONGEST:
            joined = child.join(segment)
            self._numbers.update(dict.fromkeys(joined, child.number))
            del self._segments[segment.number]

    # -- counting --------------------------------------------------------------------------------

    def _set(self, segment: Segment, worker: str, blocks: int) -> None:
        """Set how many blocks of a segment the worker holds, and keep the counters."""
        role = self._roles[worker]
        previous = segment.holders.get(worker, 0)
        others = max(
            (
                n
                for name, n in segment.holders.items()
                if name != worker and self._roles[name] == role
            ),
            default=0,
        )
        if blocks:
            segment.holders[worker] = blocks
        else:
            segment.holders.pop(worker, None)
        self._tokens[worker] += (blocks - previous) * segment.size
        distinct = max(blocks, others) - max(previous, others)
        self._distinct[role] += distinct * segment.size


def _run_back(blocks: array[int], position: int, hashes: Sequence[int], at: int) -> int:
    """How many of `hashes`, from place `at` on, are `blocks` from `position` on backwards."""
    most = min(position + 1, len(hashes) - at)
    length = 1
    while length < most and blocks[position - length] == hashes[at + length]:
        length += 1
    return length
