"""What every worker holds of a prompt: by its events where they are live, else by an estimate."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.events.control import EventStreamError
from ps_sglang.events.messages import Pin, Release, Span
from ps_sglang.events.subscriber import EventSubscriber, SubscriberTiming
from ps_sglang.gateway.config import Worker
from ps_sglang.gateway.index import branches, estimate
from ps_sglang.gateway.index.base_index import BaseIndex
from ps_sglang.gateway.index.branches import Branch, Use
from ps_sglang.gateway.index.estimate import FirstSenders
from ps_sglang.gateway.index.index_monitor import MISSES, IndexMonitor
from ps_sglang.gateway.index.lookup import NO_MATCH, PrefixMatch
from ps_sglang.gateway.index.prompt import BLOCK_BYTES, Kind, Prompt
from ps_sglang.gateway.index.prompts import Prompts
from ps_sglang.gateway.index.worker_cache import OnSpan, WorkerCache


@dataclass(frozen=True, slots=True)
class CacheSource:
    """Where the knowledge about one worker comes from, and how much it holds.

    `problem` says why it is an estimate, None if it is none. `tokens` are those held by its
    events, 0 where there are none. `counts` are the event stream's batches, replays,
    snapshots and losses.
    """

    kind: Literal["events", "estimate"]
    problem: str | None
    tokens: int
    counts: Mapping[str, int]


class CacheIndex:
    """The index, the events that fill it, and the estimates; for the thread of the event loop.

    Workers may be added before the loop runs; `start` connects to their events, `stop` ends that.
    Register functions in `computed` to be called with how many tokens a prefill worker has computed
    for a request: those with live events, see `is_live`. `key` is the workers' and the gateway's.
    """

    def __init__(
        self,
        prompts: Prompts,
        *,
        on_span: OnSpan = lambda worker, record: None,
        clock: Callable[[], float] = time.monotonic,
        timing: SubscriberTiming | None = None,
        key: ClusterKey | None = None,
    ) -> None:
        self.prompts = prompts
        self.computed: list[Callable[[str, int], None]] = []
        self.forgotten: list[Callable[[str], None]] = []
        """Called with each worker that `forget` is called with."""
        self._on_span = on_span
        self._clock = clock
        self._timing = timing
        self._key = key
        self._index = BaseIndex(prompts.texts)
        self._workers: dict[str, WorkerCache] = {}
        self._first = FirstSenders()
        self._monitor = IndexMonitor(self._index, clock, estimate.SETTLING_SECONDS)
        self._running = False

    # -- workers ---------------------------------------------------------------------------------

    def add(self, worker: Worker) -> None:
        """A worker joins."""
        self._index.add_worker(worker.name, worker.role)
        worker_cache = WorkerCache(
            worker, self._index, self._on_worker_span, self._clock, self._timing, self._key
        )
        self._workers[worker.name] = worker_cache
        if self._running:
            worker_cache.start()

    def admitted(self, name: str, incarnation: str | None) -> None:
        """From now on this process is the worker; another before it took its cache with it."""
        self._workers[name].admitted(incarnation)

    def remove(self, name: str) -> None:
        """A worker leaves."""
        self._workers.pop(name).stop()
        self._monitor.forget(name)
        self._index.drop_worker(name)

    async def start(self) -> None:
        """Subscribe to the events of all workers, those that join later included."""
        self._running = True
        for worker_cache in self._workers.values():
            worker_cache.start()

    async def stop(self) -> None:
        """Unsubscribe from all."""
        self._running = False
        tasks = [
            task
            for worker_cache in self._workers.values()
            if (task := worker_cache.stop()) is not None
        ]
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- what they hold --------------------------------------------------------------------------

    def match(self, prompt: Prompt) -> Mapping[str, PrefixMatch]:
        """The prefix that each worker holds or is about to hold, by worker's name.

        Workers that hold nothing of it are left out.
        """
        addressed = prompt.exact and self._monitor.finds(prompt.kind)
        matches = dict(self._index.match(prompt.text, prompt.salt)) if prompt.exact else {}
        first = prompt.blocks[:1]
        for name, worker_cache in self._workers.items():
            if not (first and worker_cache.estimate.knows(first[0])):
                continue  # most hold nothing of it
            is_live = addressed and worker_cache.is_live
            seconds = estimate.SETTLING_SECONDS if is_live else estimate.SECONDS
            blocks = worker_cache.estimate.match(prompt.blocks, seconds)
            believed = prompt.blocks_bytes(blocks)
            sure = matches.get(name, NO_MATCH)
            if believed > sure.bytes:
                more = (believed - sure.bytes) / self._index.bytes_per_token
                matches[name] = PrefixMatch(sure.tokens + int(more), believed)
        return matches

    def tokens(self, prompt: Prompt, matches: Mapping[str, PrefixMatch]) -> float:
        """A prompt's length: what is held is known, the rest is taken to be like other prompts."""
        if prompt.tokens is not None:
            return prompt.tokens
        best = max(matches.values(), key=lambda match: match.bytes, default=NO_MATCH)
        return best.tokens + (len(prompt.text) - best.bytes) / self._index.bytes_per_token

    def sent(self, worker: str, prompt: Prompt) -> None:
        """A worker is about to hold the whole prompt; `settled` must follow."""
        if worker in self._workers:
            self._workers[worker].estimate.sent(prompt.blocks)

    def settled(self, worker: str, prompt: Prompt, arrived: bool) -> None:
        """What was `sent` has arrived, or never will."""
        worker_cache = self._workers.get(worker)
        if worker_cache is not None:
            worker_cache.estimate.settled(prompt.blocks, arrived)
            if arrived:
                self._stored(worker, worker_cache, prompt)

    def arrived(self, worker: str, prompt: Prompt) -> None:
        """A worker holds the whole prompt, which was never `sent` to it."""
        worker_cache = self._workers.get(worker)
        if worker_cache is not None:
            worker_cache.estimate.arrived(prompt.blocks)
            self._stored(worker, worker_cache, prompt)

    def _stored(self, worker: str, worker_cache: WorkerCache, prompt: Prompt) -> None:
        if prompt.exact and worker_cache.is_live:
            self._monitor.stored(worker, prompt)

    def is_live(self, worker: str) -> bool:
        """Whether the index has what a worker holds, by its events."""
        worker_cache = self._workers.get(worker)
        return worker_cache is not None and worker_cache.is_live

    def forget(self, worker: str) -> None:
        """A worker's cache is known to be empty; its events, if any, say so themselves."""
        self.forget_estimate(worker)
        for listener in self.forgotten:
            listener(worker)

    def forget_estimate(self, worker: str) -> None:
        """As `forget`; another process has found it out."""
        if worker in self._workers:
            self._workers[worker].estimate.forget()

    def turn(self, prompt: Prompt, decoder: str, match: PrefixMatch) -> int:
        """A decoder's turn sends `prompt`, of which its prefill worker holds `held`.

        Returns how many of these tokens another decoder's turn brought in.
        """
        others = self._first.turn(prompt.blocks, decoder)
        blocks = others[: -(-match.bytes // BLOCK_BYTES)]
        return round(sum(blocks) / len(blocks) * match.tokens) if blocks else 0

    # -- events and commands ---------------------------------------------------------------------

    async def release(self, worker: str, session: str) -> None:
        """Let the pages that only this conversation uses go first; raises EventStreamError."""
        await self._events(worker).ask(Release(session))

    async def pin(self, worker: str, session: str, seconds: float) -> None:
        """Let a conversation's pages go last for a while; raises EventStreamError."""
        await self._events(worker).ask(Pin(session, seconds))

    def worker_cache(self, worker: str) -> WorkerCache:
        """Where a worker's events go; raises KeyError if there is none such."""
        return self._workers[worker]

    def has_events(self, worker: str) -> bool:
        """Whether `release` and `pin` can be asked of a worker."""
        worker_cache = self._workers.get(worker)
        return worker_cache is not None and worker_cache.events is not None

    @property
    def workers(self) -> tuple[str, ...]:
        """The names of all workers."""
        return tuple(self._workers)

    def problem(self, kind: Kind) -> str | None:
        """Why prompts of a kind do not address what workers hold; None if they do."""
        problem = self.prompts.chat_problem if kind == "chat" else self.prompts.problem
        if problem is None and not self._monitor.finds(kind):
            return f"the last {MISSES} did not find what was stored for them"
        return problem

    def source(self, worker: str) -> CacheSource:
        """Where the knowledge about a worker comes from; raises KeyError if there is none such."""
        worker_cache = self._workers[worker]
        problem = self.prompts.problem or worker_cache.problem
        counts = worker_cache.events.counts if worker_cache.events is not None else Counter[str]()
        return CacheSource(
            "events" if problem is None else "estimate",
            problem,
            self._index.held_tokens(worker),
            counts,
        )

    def duplicated(self) -> int:
        """Tokens that decode workers hold beyond the first copy among them, by their events."""
        return self._index.duplicated("decode")

    @property
    def blocks(self) -> int:
        """Blocks that the events of any worker say are held."""
        return len(self._index)

    def branches(self, uses: Iterable[Use], most: int) -> Branch:
        """The tree that the events have built, see `branches.grow`."""
        return branches.grow(self._index.roots, uses, most)

    def _on_worker_span(self, worker: str, record: Span) -> None:
        if record.role == "prefill":
            for listener in self.computed:
                listener(worker, record.computed)
        self._on_span(worker, record)

    def _events(self, worker: str) -> EventSubscriber:
        worker_cache = self._workers.get(worker)
        if worker_cache is None or worker_cache.events is None:
            raise EventStreamError(f"worker {worker!r} publishes no events")
        return worker_cache.events
