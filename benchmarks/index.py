"""The base-token index with a million blocks: how long a lookup takes, how much a block costs.

    python -m benchmarks.index [--quick]

Conversations of random tokens in pages of one token, the worst size for an index.
"""

from __future__ import annotations

import gc
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import psutil

from benchmarks.report import parser, save
from ps_sglang.gateway.index.base_index import BaseIndex
from ps_sglang.gateway.index.texts import TokenTexts

BLOCKS: Final = 1_000_000
_QUICK_BLOCKS: Final = 100_000
PROMPT_TOKENS: Final = 8_000
WORKERS: Final = 8
LOOKUPS: Final = 400
_VOCABULARY: Final = 49_152
_SYSTEM_TOKENS: Final = 500
_LETTERS: Final = b"abcdefghijklmnopqrstuvwxyz ,.\n"


class _Conversations:
    """Makes conversations: a shared beginning, then turns; and the events that they cause."""

    def __init__(self) -> None:
        self._source = random.Random(0)
        self.table = [
            bytes(self._source.choices(_LETTERS, k=self._source.randrange(1, 8)))
            for _ in range(_VOCABULARY)
        ]
        self.system = self.tokens(_SYSTEM_TOKENS)

    def tokens(self, count: int) -> list[int]:
        """Random tokens."""
        return [self._source.randrange(_VOCABULARY) for _ in range(count)]

    def prompt(self) -> list[int]:
        """A prompt that only its beginning shares with others."""
        return self.system + self.tokens(PROMPT_TOKENS - _SYSTEM_TOKENS)

    def workers(self) -> list[str]:
        """The prefill and the decode worker of a conversation."""
        return self._source.sample([f"w{number}" for number in range(WORKERS)], 2)

    def turns(self) -> Iterator[tuple[list[int], list[int], int]]:
        """Tokens and hashes so far, and how many of them are not new."""
        tokens = self.system[: self._source.choice((200, 350, 500))]
        hashes: list[int] = []
        for _ in range(self._source.randrange(3, 30)):
            tokens = tokens + self.tokens(self._source.randrange(50, 300))
            old = len(hashes)
            hashes += hashed(tokens, hashes)
            yield tokens, hashes, old


def hashed(tokens: list[int], previous: list[int]) -> list[int]:
    """Hashes of content for the tokens behind those that have one."""
    last = previous[-1] if previous else 0
    hashes = []
    for token in tokens[len(previous) :]:
        last = hash((last, token))
        hashes.append(last)
    return hashes


def _measure(blocks: int) -> dict[str, Any]:
    conversations = _Conversations()
    texts = TokenTexts(conversations.table)
    index = BaseIndex(texts)
    for number in range(WORKERS):
        index.add_worker(f"w{number}", "prefill" if number < 2 else "decode")
    prompt = conversations.prompt()
    for number in range(WORKERS):
        index.stored(f"w{number}", hashed(prompt, []), None, prompt, 1)
    gc.collect()
    memory, blocks_at_first = psutil.Process().memory_info().rss, len(index)
    events = applied = 0
    seconds = 0.0
    while len(index) < blocks:
        workers = conversations.workers()
        for tokens, hashes, old in conversations.turns():
            parent = hashes[old - 1] if old else None
            for worker in workers:
                began = time.perf_counter()
                index.stored(worker, hashes[old:], parent, tokens[old:], 1)
                seconds += time.perf_counter() - began
                events += 1
                applied += len(hashes) - old
    gc.collect()
    memory = psutil.Process().memory_info().rss - memory
    return {
        "blocks": len(index),
        "workers": WORKERS,
        "bytes_per_block": round(memory / (len(index) - blocks_at_first), 1),
        "events_per_second": round(events / seconds),
        "blocks_applied_per_second": round(applied / seconds),
        "lookup_ms": {
            "held by all workers": _lookups(index, texts, [prompt] * LOOKUPS),
            "mostly new": _lookups(index, texts, [conversations.prompt() for _ in range(LOOKUPS)]),
        },
    }


def _lookups(index: BaseIndex, texts: TokenTexts, prompts: list[list[int]]) -> dict[str, float]:
    taken = []
    for prompt in prompts:
        text = b"".join(texts.of(prompt))
        began = time.perf_counter()
        index.match(text)
        taken.append((time.perf_counter() - began) * 1000)
    p99 = statistics.quantiles(taken, n=100)[98]
    return {"median": round(statistics.median(taken), 4), "p99": round(p99, 4)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save."""
    options = parser("index", __doc__, f"{_QUICK_BLOCKS:,} blocks, in seconds").parse_args(argv)
    figures = _measure(_QUICK_BLOCKS if options.quick else BLOCKS)
    for name, value in figures.items():
        print(f"{name.replace('_', ' ')}: {value}")
    save("index", figures, quick=options.quick, publish=options.publish)
    return 0


if __name__ == "__main__":
    sys.exit(main())
