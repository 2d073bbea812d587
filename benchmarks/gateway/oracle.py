"""A router that knows all trees: before each request it asks every prefill worker what it holds.

It sends both legs itself, so nothing lies between it and the engines. Two policies bracket what
perfect knowledge can do: `greedy` goes where most is held and looks at load only between equals;
`balanced` weighs what is to be computed with what is already queued. The better one is the oracle.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.gateway.client import Client, Reply
from benchmarks.gateway.latency import both_legs
from benchmarks.gateway.systems import Fleet

POLICIES: Final = ("greedy", "balanced")
_BYTES_PER_TOKEN: Final = 6  # of a chat body in this benchmark's vocabulary


@dataclass
class Work:
    """What a worker has been given."""

    queued_tokens: int = 0
    chosen: int = 0


class Choice:
    """Chooses among prefill workers, by what each holds of a prompt."""

    def __init__(self, policy: str, workers: Sequence[str]) -> None:
        self._policy = policy
        self._work = {name: Work() for name in workers}

    def choose(self, held: Mapping[str, int], length: int) -> tuple[str, int]:
        """The worker, and how many tokens it is taken to compute; `done` must follow."""
        name = min(self._work, key=lambda one: self._cost(one, held[one], length))
        new = max(0, length - held[name])
        self._work[name].queued_tokens += new
        self._work[name].chosen += 1
        return name, new

    def done(self, name: str, new: int) -> None:
        """The worker has computed the prompt."""
        self._work[name].queued_tokens -= new

    def _cost(self, name: str, held: int, length: int) -> tuple[float, float]:
        work = self._work[name]
        if self._policy == "greedy":
            return -held, work.queued_tokens
        return length - held + work.queued_tokens / 2, work.chosen


class Oracle:
    """Chooses the prefill worker for each request, and runs the request."""

    def __init__(self, engines: Fleet, policy: str) -> None:
        self._prefill = {engine.url: engine for engine in engines.prefill}
        self._decode = {engine.config.decoder: engine for engine in engines.decode}
        self._choice = Choice(policy, tuple(self._prefill))
        self._choosing = asyncio.Lock()

    async def post(self, client: Client, decoder: str, body: bytes) -> Reply:
        """Send a chat; returns the decode leg's answer."""
        async with self._choosing:  # a choice sees the load of all choices before it
            held = {url: await self._held(client, url, body) for url in self._prefill}
            url, new = self._choice.choose(held, len(body) // _BYTES_PER_TOKEN)
        decode = self._decode[decoder]
        prefill = self._prefill[url]
        return await both_legs(client, prefill, decode, body, lambda: self._choice.done(url, new))

    async def _held(self, client: Client, url: str, body: bytes) -> int:
        return int((await client.post(url, "/match", body)).content)
