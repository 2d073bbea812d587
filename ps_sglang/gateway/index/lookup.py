"""Looking up a prompt in the base-token index: one walk for all workers."""

from __future__ import annotations

from typing import NamedTuple

from ps_sglang.gateway.index.segment import Segment

SPARE_STEPS = 256
"""Segments that a lookup may visit beyond one for each byte of the prompt."""


class PrefixMatch(NamedTuple):
    """The prefix of a prompt that a worker holds, in tokens and in bytes of the prompt's text."""

    tokens: int
    bytes: int


NO_MATCH = PrefixMatch(0, 0)


def match_prefix(root: Segment, text: bytes) -> dict[str, PrefixMatch]:
    """The longest prefix of `text` that each worker holds below `root`."""
    best: dict[str, PrefixMatch] = {}
    # Equal text in other tokens branches the walk; the budget keeps hostile prompts linear.
    budget = len(text) + SPARE_STEPS
    ahead: list[tuple[Segment, PrefixMatch]] = [(root, NO_MATCH)]
    while ahead and budget:
        segment, start = ahead.pop()
        budget -= 1
        blocks = segment.matching(text, start.bytes)
        if blocks == len(segment.hashes) and segment.children is not None:
            at = start.bytes + len(segment.text)
            after = PrefixMatch(start.tokens + blocks * segment.size, at)
            children = segment.children
            next_segments = [
                (child, after)
                for length in segment.lengths
                for child in children.get(text[at : at + length], ())
            ]
            if next_segments:
                ahead += next_segments
                continue
        _credit(best, segment, blocks, start)
    return best


def _credit(
    best: dict[str, PrefixMatch], segment: Segment, blocks: int, path_start: PrefixMatch
) -> None:
    """Note what each worker holds of the path that ends after `blocks` blocks of `segment`."""
    done: set[str] = set()
    tokens, start = path_start
    while True:
        # Whoever holds a block holds all before it, so more holders mean new ones.
        for worker, cached in segment.holders.items() if len(segment.holders) > len(done) else ():
            if worker not in done:
                done.add(worker)
                common = min(cached, blocks)
                match = PrefixMatch(
                    tokens + common * segment.size, start + segment.text_end(common)
                )
                if match > best.get(worker, NO_MATCH):
                    best[worker] = match
        parent = segment.parent
        if parent is None or parent.parent is None:
            return
        segment, blocks = parent, len(parent.hashes)
        tokens -= blocks * segment.size
        start -= len(segment.text)
