"""Which prefill and which decode worker a prompt goes to.

Prefill: the worker with the least estimated work, in characters of prompt:

    cost = characters this prompt adds to the worker's cache
         + QUEUE_WEIGHT * characters already queued there and not yet prefilled
         + REQUEST_COST for each unfinished prefill

A queue only delays, whereas a prefix prefilled twice takes capacity and cache from all requests:
so a queued character weighs half, and a worker is left for a colder one when its queue is twice as
long as what would be prefilled again. REQUEST_COST, one block, stands for what a prefill costs
whatever its length (scheduling, handoff); it also spreads prompts that are shorter than a block.
Equal costs go to the worker chosen least often.

What a worker holds is estimated: it is credited with a prompt as soon as the prompt is sent there,
so that a burst of similar prompts stays together and a burst of different ones spreads.

Decode: the worker of the decoder with the fewest unfinished requests.

The index is keyed on the prompt and the tenant's salt, never on the decoder: what one decoder's
turn has prefilled serves all of them.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from ps_sglang.gateway.config import DecodeWorker, GatewayConfig, PrefillWorker

BLOCK_CHARACTERS = 512
QUEUE_WEIGHT = 0.5
REQUEST_COST = BLOCK_CHARACTERS
INDEX_BLOCKS = 65_536  # per prefill worker: 32 Mi characters, about 10 MB of memory
UNREACHABLE_SECONDS = 5.0

_Worker = TypeVar("_Worker", PrefillWorker, DecodeWorker)


@dataclass(frozen=True)
class Prompt:
    """A prompt in canonical form: equal prefixes of prompts are equal prefixes of `text`."""

    text: str
    salt: str = ""

    @cached_property
    def blocks(self) -> tuple[bytes, ...]:
        """Chained hashes of the full blocks: equal hashes mean equal prefixes up to there."""
        chained = hashlib.blake2b(self.salt.encode(), digest_size=16).digest()
        hashes = []
        for end in range(BLOCK_CHARACTERS, len(self.text) + 1, BLOCK_CHARACTERS):
            block = self.text[end - BLOCK_CHARACTERS : end].encode()
            chained = hashlib.blake2b(chained + block, digest_size=16).digest()
            hashes.append(chained)
        return tuple(hashes)


class PrefixIndex:
    """The blocks that one worker is believed to hold, least recently used first."""

    def __init__(self, capacity: int = INDEX_BLOCKS) -> None:
        self._capacity = capacity
        self._blocks: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def held(self, blocks: Sequence[bytes]) -> int:
        """How many leading blocks are held. Does not change the index."""
        for count, block in enumerate(blocks):
            if block not in self._blocks:
                return count
        return len(blocks)

    def add(self, blocks: Sequence[bytes]) -> None:
        """Mark blocks as just used; drops the least recently used ones above the capacity."""
        # Last block first: a prefix must outlive what continues it.
        for block in reversed(blocks):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._blocks.clear()


@dataclass
class _Load:
    """Unfinished work of one worker."""

    requests: int = 0
    characters: int = 0
    chosen: int = 0


@dataclass
class Route:
    """A chosen pair of workers. Its holder calls `release` exactly when the request has ended."""

    prefill: PrefillWorker
    decode: DecodeWorker
    held_characters: int
    new_characters: int
    _prefill_load: _Load = field(repr=False)
    _decode_load: _Load = field(repr=False)
    _prefilling: bool = True
    _decoding: bool = True

    def prefilled(self) -> None:
        """The prefill worker is done with this prompt. May be called more than once."""
        if self._prefilling:
            self._prefilling = False
            self._prefill_load.requests -= 1
            self._prefill_load.characters -= self.new_characters

    def release(self) -> None:
        """Neither worker works on this request any more. May be called more than once."""
        self.prefilled()
        if self._decoding:
            self._decoding = False
            self._decode_load.requests -= 1


class Router:
    """Chooses workers by prefix affinity and load; see the module's docstring."""

    def __init__(
        self,
        config: GatewayConfig,
        *,
        index_blocks: int = INDEX_BLOCKS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._clock = clock
        self._index = {worker.name: PrefixIndex(index_blocks) for worker in config.prefill}
        self._load = {worker.name: _Load() for worker in config.workers}
        self._avoid_until: dict[str, float] = {}

    def choose(self, prompt: Prompt, decoder: str, tried: Collection[str] = ()) -> Route:
        """Choose the pair for `prompt`, leaving out the workers named in `tried`.

        The choice counts as load at once. Raises LookupError if no worker of a role is left.
        """
        prefill = min(
            self._candidates(self._config.prefill, tried),
            key=lambda worker: self._prefill_cost(prompt, worker),
        )
        decode = min(
            self._candidates(self._config.decode_workers(decoder), tried),
            key=lambda worker: self._decode_cost(worker),
        )
        return self._book(prompt, prefill, decode)

    def can_choose(self, decoder: str, tried: Collection[str]) -> bool:
        """Whether a pair is left for `decoder` without the workers named in `tried`."""
        decode = self._config.decode_workers(decoder)
        return all(
            any(worker.name not in tried for worker in workers)
            for workers in (self._config.prefill, decode)
        )

    def pending(self, worker: str) -> int:
        """Unfinished requests of a worker."""
        return self._load[worker].requests

    def mark_unreachable(self, worker: str) -> None:
        """Avoid a worker for a while; it has probably lost its cache as well."""
        self._avoid_until[worker] = self._clock() + UNREACHABLE_SECONDS
        self.forget(worker)

    def forget(self, worker: str) -> None:
        """The worker's cache is empty now."""
        if worker in self._index:
            self._index[worker].clear()

    def _candidates(self, workers: Sequence[_Worker], tried: Collection[str]) -> list[_Worker]:
        left = [worker for worker in workers if worker.name not in tried]
        if not left:
            raise LookupError("no worker is left to try")
        now = self._clock()
        good = [worker for worker in left if self._avoid_until.get(worker.name, now) <= now]
        return good or left

    def _held(self, prompt: Prompt, worker: PrefillWorker) -> int:
        return self._index[worker.name].held(prompt.blocks) * BLOCK_CHARACTERS

    def _prefill_cost(self, prompt: Prompt, worker: PrefillWorker) -> tuple[float, int]:
        load = self._load[worker.name]
        new = len(prompt.text) - self._held(prompt, worker)
        queue = QUEUE_WEIGHT * load.characters + REQUEST_COST * load.requests
        return new + queue, load.chosen

    def _decode_cost(self, worker: DecodeWorker) -> tuple[int, int]:
        load = self._load[worker.name]
        return load.requests, load.chosen

    def _book(self, prompt: Prompt, prefill: PrefillWorker, decode: DecodeWorker) -> Route:
        held = self._held(prompt, prefill)
        new = len(prompt.text) - held
        self._index[prefill.name].add(prompt.blocks)
        prefill_load, decode_load = self._load[prefill.name], self._load[decode.name]
        for load in (prefill_load, decode_load):
            load.requests += 1
            load.chosen += 1
        prefill_load.characters += new
        return Route(prefill, decode, held, new, prefill_load, decode_load)
