"""The trace before the product's router and the stand-in engines, without processes or waiting.

    python -m benchmarks.gateway.simulation [--seeds 101 102] [--workers 2 4] [--pools 1 1.5]

One thread and an event loop whose clock jumps to whatever is due next: what takes minutes with
processes takes seconds here, and comes out the same each time. Weights of the router are chosen
with this; what the benchmark reports is measured with processes and other seeds.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import selectors
import sys
import tempfile
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from benchmarks.gateway import agents, trace
from benchmarks.gateway.agents import OTHER_POOLS, PACE, POOL
from benchmarks.gateway.client import Client, Reply
from benchmarks.gateway.compared import OURS
from benchmarks.gateway.engine import PrefillEngine
from benchmarks.gateway.events import STEP_SECONDS, Change, NoFeed
from benchmarks.gateway.messages import CHAT, Body, EngineConfig
from benchmarks.gateway.oracle import POLICIES, Choice
from benchmarks.gateway.vocabulary import render, words, write_tokenizer
from ps_sglang.events.messages import AllBlocksCleared, KvEvent, Span
from ps_sglang.gateway.config import DecodeWorker, PrefillWorker
from ps_sglang.gateway.index.cache_index import CacheIndex
from ps_sglang.gateway.index.prompt import Prompt
from ps_sglang.gateway.index.prompts import Prompts
from ps_sglang.gateway.index.worker_cache import WorkerCache
from ps_sglang.gateway.routing.pool import WorkerPool
from ps_sglang.gateway.routing.router import Router

_T = TypeVar("_T")
_BODY: Final = msgspec.json.Decoder(Body)


class _Jumping(selectors.SelectSelector):
    """Waits for nothing: the time that it should wait has passed when it returns."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everything waits and nothing is due: the simulation is stuck")
        self.now += max(0.0, timeout)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def simulated(work: Coroutine[Any, Any, _T]) -> _T:
    """Run `work` in an event loop whose clock jumps."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(work)


class _Told(NoFeed):
    """Tells a gateway's mirror what changes, a step later."""

    def __init__(self, page_size: int, worker_cache: WorkerCache) -> None:
        self._page_size = page_size
        self._mirror = worker_cache
        self._waiting: list[KvEvent] = [AllBlocksCleared()]
        self._end_step()
        worker_cache.live()

    def changed(self, change: Change) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_later(STEP_SECONDS, self._end_step)
        self._waiting += change.events(self._page_size)

    def record(self, record: Span) -> None:
        self._mirror.span(record)

    def _end_step(self) -> None:
        events, self._waiting = self._waiting, []
        for event in events:
            self._mirror.kv(event)


class Simulation:
    """A target of the trace: engines, and what chooses between them."""

    def __init__(self, folder: Path, name: str, workers: int, pool_tokens: int) -> None:
        """`folder` has the tokenizer; `name` is `gateway` or a policy of the oracle."""
        clock = asyncio.get_running_loop().time
        cache_index = CacheIndex(Prompts.load(str(folder)), clock=clock)
        pool = self.pool = WorkerPool()
        self.engines: dict[str, PrefillEngine] = {}
        for number in range(workers):
            prefill = PrefillWorker(f"prefill-{number}", "http://host:1", "host", number)
            pool.add(prefill)
            cache_index.add(prefill)
            config = EngineConfig(prefill.name, str(folder), pool_tokens=pool_tokens, pace=PACE)
            told = _Told(config.page_size, cache_index.worker_cache(prefill.name))
            self.engines[prefill.name] = PrefillEngine(config, told)
        for role in trace.ROLES:
            decode = DecodeWorker(role, "http://host:2", role)
            pool.add(decode)
            cache_index.add(decode)
        self.router = Router(pool, cache_index, clock=clock)
        self._oracle = Choice(name, tuple(self.engines)) if name in POLICIES else None
        self._words = [" " + word for word in words()]

    async def post(self, client: Client, decoder: str, body: bytes) -> Reply:
        """Serve a chat."""
        clock = asyncio.get_running_loop().time
        sent = clock()
        asked = _BODY.decode(body)
        engine = next(iter(self.engines.values()))
        tokens = engine.tokens(CHAT, asked)
        pages = engine.pages(asked, tokens)
        if self._oracle is not None:
            size = engine.config.page_size
            held = {name: one.tree.match(pages) * size for name, one in self.engines.items()}
            name, new = self._oracle.choose(held, len(tokens) - 1)
            found = await self.engines[name].compute(asked, tokens, pages)
            self._oracle.done(name, new)
            release = _nothing
        else:
            prompt = Prompt(render(asked.messages).encode(), asked.salt, kind="chat")
            route = self.router.choose(prompt, self.pool.served(decoder))
            found = await self.engines[route.prefills.name].compute(asked, tokens, pages)
            route.handed_over()
            release = route.release
        await asyncio.sleep((len(tokens) - 1 - found) * PACE.moved_token)
        first = clock()
        await asyncio.sleep(asked.output_tokens * PACE.decode_token)
        release()
        return Reply(sent, first, clock(), self._say(decoder, pages, asked.output_tokens))

    def _say(self, decoder: str, pages: list[int], count: int) -> bytes:
        source = random.Random(f"{decoder} {pages[-1]}")
        said = {"delta": {"content": "".join(source.choices(self._words, k=count))}}
        return b"data: " + msgspec.json.encode({"choices": [said]}) + b"\n\ndata: [DONE]\n\n"


def _nothing() -> None:
    pass


async def play(
    folder: Path, name: str, workers: int, pool_tokens: int, shape: trace.Shape, seed: int
) -> dict[str, float]:
    """A trace until it ends, judged."""
    target = Simulation(folder, name, workers, pool_tokens)
    taken = await trace.run(shape, seed, target)
    return trace.judged(taken, [one.totals for one in target.engines.values()])


def main(argv: Sequence[str] | None = None) -> int:
    """Print what the gateway and the oracle's policies reach."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gateway.simulation", description=__doc__
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--pools", type=float, nargs="+", default=[POOL, *OTHER_POOLS])
    parser.add_argument("--systems", nargs="+", default=[OURS, *POLICIES])
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(folder)
        cases = itertools.product(options.workers, options.pools, options.seeds, options.systems)
        for workers, pool, seed, system in cases:
            size, shape = agents.pool_tokens(workers, pool), agents.shape(workers)
            one = simulated(play(folder, system, workers, size, shape, seed))
            print(
                f"{workers} prefill workers, pool {pool:.1f}, seed {seed}, {system:<9}"
                f" hit {one['hit_percent']:5.1f}%, imbalance {one['imbalance']:.2f},"
                f" whole turn p95 {one['total_p95_ms']:4.0f} ms, {one['requests']} requests"
                f" in {one['seconds']:.0f} s",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
