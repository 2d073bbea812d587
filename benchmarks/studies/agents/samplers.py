"""Prefills, decode steps and moves of every size of a grid, one after another, each timed.

Every time is what the workers tell of a request that came through the gateway.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from benchmarks.sessions.client import Answer, Client
from benchmarks.sessions.running import Process, Running, flush
from benchmarks.studies.agents.fit import Sample
from benchmarks.studies.agents.ideal import pairs


@dataclass(frozen=True)
class Grid:
    """What is measured, in tokens and requests, each `repeats` times.

    Before each is a `pause` (seconds), as agents make between turns: after one a prefill takes a
    tenth longer than at the heels of another. `idle` seconds it is looked at what nothing costs.
    """

    # Within one chunk of SGLang's prefill on a CPU (4,096 tokens), so that each is one pass.
    held: Sequence[int] = (0, 1024, 3072)
    new: Sequence[int] = (32, 128, 512, 2048)
    contexts: Sequence[int] = (256, 2048, 6144)
    batches: Sequence[int] = (1, 2, 4, 8)
    moves: Sequence[int] = (256, 1024, 4096)
    output: int = 24
    repeats: int = 1
    pause: float = 0.5
    idle: float = 9.0


class Prompts:
    """Prompts that share nothing: no worker's tree holds anything of them."""

    def __init__(self, ids: range) -> None:
        self._ids = ids
        self._source = random.Random(0)

    def __call__(self, tokens: int) -> list[int]:
        return self._source.choices(self._ids, k=tokens)


class Taken(NamedTuple):
    """The samples, the seconds of all steps of their kind, and how many requests were sent."""

    samples: list[Sample]
    busy: float
    asked: int


Tell = Callable[[int], None]
"""Takes how many samples there are so far."""


async def prefills(running: Running, prompts: Prompts, grid: Grid, tell: Tell) -> Taken:
    """By tokens that are held and new."""
    samples: list[Sample] = []
    async with Client(running.endpoints) as client:
        for cached, new in _grid(grid.repeats, grid.held, grid.new):
            prompt = prompts(cached + new + 1)  # its last token is the decoder's
            asked = [prompt[: cached + 1], prompt] if cached else [prompt]
            for prompt_ids in asked:
                await asyncio.sleep(grid.pause)
                answer = await client.ask(0, prompt_ids, 1)
                samples.append((_prefill_counts(answer), answer.stages["prefill"]))
                tell(len(samples))
    return Taken(samples, sum(seconds for _, seconds in samples), len(samples))


def _prefill_counts(answer: Answer) -> dict[str, float]:
    new, cached = answer.tokens["computed"], answer.tokens["tree"]
    return {"steps": 1, "tokens": new, "pairs": pairs(cached, new)}


async def decodes(running: Running, prompts: Prompts, grid: Grid, tell: Tell) -> Taken:
    """By requests of a batch and tokens of their contexts."""
    samples: list[Sample] = []
    busy, sent = 0.0, 0
    async with Client(running.endpoints) as client:
        for context, batch in _grid(grid.repeats, grid.contexts, grid.batches):
            prompt = prompts(context)
            first = await client.ask(0, prompt, 1)  # now the decode worker holds it
            await asyncio.sleep(grid.pause)
            asked = [client.ask(0, prompt, grid.output) for _ in range(batch)]
            answers = await asyncio.gather(*asked)
            sent += 1 + batch
            step = statistics.median(answer.stages["decode"] for answer in answers) / (
                grid.output - 1
            )
            read = batch * (context + grid.output / 2)
            samples.append(({"steps": 1, "requests": batch, "context": read}, step))
            busy += first.stages["first_step"]
            busy += max(answer.stages["first_step"] + answer.stages["decode"] for answer in answers)
            tell(len(samples))
    return Taken(samples, busy, sent)


async def moves(running: Running, prompts: Prompts, grid: Grid, tell: Tell) -> Taken:
    """By tokens; their steps are not counted."""
    samples: list[Sample] = []
    (decode,) = (process for process in running.processes if process.role == "decode")
    async with Client(running.endpoints) as client:
        for (tokens,) in _grid(grid.repeats, grid.moves):
            prompt = prompts(tokens + 1)
            await client.ask(0, prompt, 1)
            await asyncio.to_thread(_forget, decode)
            answer = await client.ask(0, prompt, 1)
            counts = {"moves": 1, "tokens": answer.tokens["pulled"]}
            samples.append((counts, answer.stages["pull"]))
            tell(len(samples))
    return Taken(samples, 0.0, 2 * len(samples))


def _forget(worker: Process) -> None:
    flush(Running((), (worker,)))


def _grid(repeats: int, *axes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    for _ in range(repeats):
        yield from product(*axes)
