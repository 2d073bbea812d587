"""A router that knows all trees: before each request it asks every prefill worker what it holds.

It sends both legs itself, so nothing lies between it and the engines. Two policies bracket what
perfect knowledge can do: `greedy` goes where most is held and looks at load only between equals;
`balanced` weighs what is to be computed with what is already queued. The better one is the oracle.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.gateway.client import Client, Reply
from benchmarks.gateway.latency import both_legs
from benchmarks.gateway.systems import Fleet

Policy = Literal["greedy", "balanced"]
POLICIES: Final[tuple[Policy, ...]] = ("greedy", "balanced")
_BYTES_PER_TOKEN: Final = 6  # of a chat body in this benchmark's vocabulary


@dataclass
class _Load:
    queued_tokens: int = 0
    chosen: int = 0


class Oracle:
    """Chooses the prefill worker for each request, and runs the request."""

    def __init__(self, engines: Fleet, policy: Policy) -> None:
        self._policy = policy
        self._prefill = {engine.url: engine for engine in engines.prefill}
        self._decode = {engine.config.decoder: engine for engine in engines.decode}
        self._load = {url: _Load() for url in self._prefill}
        self._choosing = asyncio.Lock()

    async def post(self, client: Client, decoder: str, body: bytes) -> Reply:
        """Send a chat; returns the decode leg's answer."""
        async with self._choosing:  # a choice sees the load of all choices before it
            held = {url: await self._held(client, url, body) for url in self._prefill}
            length = len(body) // _BYTES_PER_TOKEN
            url = min(self._prefill, key=lambda one: self._cost(one, held[one], length))
            load, new = self._load[url], max(0, length - held[url])
            load.queued_tokens += new
            load.chosen += 1

        def prefilled() -> None:
            load.queued_tokens -= new

        decode = self._decode[decoder]
        return await both_legs(client, self._prefill[url], decode, body, prefilled)

    async def _held(self, client: Client, url: str, body: bytes) -> int:
        return int((await client.post(url, "/match", body)).content)

    def _cost(self, url: str, held: int, length: int) -> tuple[float, float]:
        load = self._load[url]
        if self._policy == "greedy":
            return -held, load.queued_tokens
        return length - held + load.queued_tokens / 2, load.chosen
