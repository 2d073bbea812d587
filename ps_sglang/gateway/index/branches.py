"""The base-token tree for people: its largest branches, and which decoder used them of late.

The index knows prompts by text and nothing of decoders. Who used what is found anew each time, by
walking the prompts of the last turns down the tree.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Final

from ps_sglang.gateway.index.segment import Root, Segment

MOST_SEGMENTS: Final = 4096
"""Segments that are looked at, beside those that the last turns lead to: it bounds the time."""
EXCERPT_CHARACTERS: Final = 120


@dataclass(frozen=True, slots=True)
class Use:
    """One turn of a decoder: its prompt's bytes and salt, and how many tokens were found cached."""

    decoder: str
    text: bytes
    salt: str
    found: int


@dataclass(slots=True)
class Usage:
    """What turns of one decoder read of a branch: tokens computed for them, and found."""

    turns: int = 0
    computed: int = 0
    found: int = 0


@dataclass(slots=True)
class Branch:
    """Tokens without a fork, and what follows them.

    `excerpt` is how their text begins, `held` how many of them each worker has. `tokens` are its
    own, `below` those of all that follows. `hidden` counts the branches behind this one that are
    left out.
    """

    salt: str
    excerpt: str
    tokens: int
    held: dict[str, int]
    used: dict[str, Usage]
    below: int
    hidden: int = 0
    branches: list[Branch] = field(default_factory=list)


def grow(roots: Mapping[str, Root], uses: Iterable[Use], most: int) -> Branch:
    """The `most` largest branches, those that `uses` lead to first, behind one without tokens."""
    used = _walk_all(roots, uses)
    totals = _totals(_visit(roots, used))
    trunk = Branch("", "", 0, {}, {}, 0)
    fresh = count()
    # No branch is larger than the one before it, or is used where that is not.
    waiting: list[tuple[bool, int, int, Branch, str, Segment]] = []

    def offer(parent: Branch, salt: str, before: Segment) -> None:
        for child in _children(before):
            if child in totals:
                rank = (child not in used, -totals[child], next(fresh))
                heapq.heappush(waiting, (*rank, parent, salt, child))
                parent.below += totals[child]

    for salt, root in roots.items():
        offer(trunk, salt, root)
    for _ in range(most):
        if not waiting:
            break
        *_, parent, salt, segment = heapq.heappop(waiting)
        branch, last = _branch(salt, segment, used)
        parent.branches.append(branch)
        offer(branch, salt, last)
    for *_, parent, _, _ in waiting:
        parent.hidden += 1
    return trunk


def _branch(
    salt: str, segment: Segment, used: Mapping[Segment, dict[str, Usage]]
) -> tuple[Branch, Segment]:
    """The branch that begins with a segment, and its last segment."""
    branch = Branch(salt, "", 0, {}, {}, 0)
    text = b""
    while True:
        branch.tokens += len(segment.hashes) * segment.size
        for worker, blocks in segment.holders.items():
            branch.held[worker] = branch.held.get(worker, 0) + blocks * segment.size
        for decoder, usage in used.get(segment, {}).items():
            whole = branch.used.setdefault(decoder, Usage(usage.turns))
            whole.computed += usage.computed
            whole.found += usage.found
        if len(text) < 4 * EXCERPT_CHARACTERS:
            text += segment.text
        following = segment.only_child()
        if following is None:
            break
        segment = following
    branch.excerpt = text[: 4 * EXCERPT_CHARACTERS].decode("utf-8", "replace")[:EXCERPT_CHARACTERS]
    return branch, segment


def _walk_all(roots: Mapping[str, Root], uses: Iterable[Use]) -> dict[Segment, dict[str, Usage]]:
    """What each decoder read of the segments that its prompts lead to, parents first."""
    used: dict[Segment, dict[str, Usage]] = {}
    for use in uses:
        start = 0
        for segment, blocks in _path(roots.get(use.salt), use.text):
            tokens = blocks * segment.size
            usage = used.setdefault(segment, {}).setdefault(use.decoder, Usage())
            found = min(max(use.found - start, 0), tokens)
            usage.turns += 1
            usage.found += found
            usage.computed += tokens - found
            start += tokens
    return used


def _path(root: Root | None, text: bytes) -> Iterator[tuple[Segment, int]]:
    """The segments that a text leads to, and how many leading blocks of each it has."""
    segment: Segment | None = root
    at = 0
    while segment is not None and (children := segment.children) is not None:
        alike = [
            (child.matching(text, at), child)
            for length in segment.lengths
            for child in children.get(text[at : at + length], ())
        ]
        if not alike:
            return
        # Equal text in other tokens: the one that goes on longest.
        blocks, child = max(alike, key=lambda one: one[1].text_end(one[0]))
        yield child, blocks
        at += child.text_end(blocks)
        segment = child if blocks == len(child.hashes) else None


def _visit(roots: Mapping[str, Root], used: Iterable[Segment]) -> Iterator[Segment]:
    """The segments of `used`, and up to MOST_SEGMENTS others, each behind its parent."""
    seen = set(used)
    yield from used
    left = MOST_SEGMENTS
    ahead: deque[Segment] = deque(roots.values())
    while ahead and left > 0:
        for child in islice(_children(ahead.popleft()), left):
            ahead.append(child)
            if child not in seen:
                left -= 1
                yield child


def _children(segment: Segment) -> Iterator[Segment]:
    for alike in (segment.children or {}).values():
        yield from alike


def _totals(segments: Iterable[Segment]) -> dict[Segment, int]:
    """The tokens of each segment and of all behind it, as far as they are among `segments`."""
    totals = {segment: len(segment.hashes) * segment.size for segment in segments}
    for segment, tokens in reversed(totals.items()):
        if segment.parent in totals:
            totals[segment.parent] += tokens
    return totals
