"""What a gateway adds to a request's time, and how many requests it carries.

Every system gets the same chats at the same times (open loop, Poisson); times count from when a
request was due. The same chats sent to the engines without a gateway, both legs by the client
itself, are the ground that the added latency stands on.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Protocol

import msgspec

from benchmarks.gateway.client import Client, Reply
from benchmarks.gateway.messages import CHAT
from benchmarks.gateway.systems import Fleet, RunningEngine, Served
from benchmarks.gateway.vocabulary import words

PROMPT_WORDS: Final = 500
OUTPUT_TOKENS: Final = 16
_WARM_UP: Final = 150
_CLIENTS: Final = 32  # of the closed loop
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Mode:
    """How clients ask. `quick_ack`: they acknowledge each packet at once, which Linux delays."""

    stream: bool
    quick_ack: bool = True


MODES: Final = {
    "whole": Mode(stream=False),
    "streamed": Mode(stream=True),
    # sglang-router leaves Nagle's algorithm on, so that its streams wait for such clients.
    "streamed_delayed_ack": Mode(stream=True, quick_ack=False),
}


Chat = tuple[str, bytes]
"""A decoder and the body that asks it."""


class Target(Protocol):
    """Where requests go."""

    async def post(self, client: Client, decoder: str, body: bytes) -> Reply:
        """Send a chat; returns the answer."""
        ...


class Direct:
    """No gateway: the client sends both legs itself, prefill workers in turn."""

    def __init__(self, engines: Fleet) -> None:
        self._prefill = engines.prefill
        self._decode = {engine.config.decoder: engine for engine in engines.decode}
        self._turn = 0

    async def post(self, client: Client, decoder: str, body: bytes) -> Reply:
        """Send a chat; returns the decode leg's answer."""
        self._turn += 1
        prefill = self._prefill[self._turn % len(self._prefill)]
        return await both_legs(client, prefill, self._decode[decoder], body)


async def both_legs(
    client: Client,
    prefill: RunningEngine,
    decode: RunningEngine,
    body: bytes,
    prefilled: Callable[[], None] | None = None,
) -> Reply:
    """Do a gateway's part for a chat; `prefilled` is called when the prefill leg has ended."""
    fields = (
        b'{"rid":"%s","bootstrap_host":"127.0.0.1","bootstrap_port":%d,"bootstrap_room":%d,'
        % (secrets.token_hex(16).encode(), prefill.bootstrap_port, secrets.randbits(63))
    )
    both = fields + body[1:]
    whole = both.replace(b'"stream":true', b'"stream":false')
    first = asyncio.ensure_future(client.post(prefill.url, CHAT, whole))
    if prefilled is not None:
        first.add_done_callback(lambda _: prefilled())
    reply = await client.post(decode.url, CHAT, both)
    await first
    return reply


class Through:
    """Through a gateway, or each decoder's router."""

    def __init__(self, served: Served) -> None:
        self._urls = served.urls

    async def post(self, client: Client, decoder: str, body: bytes) -> Reply:
        """Send a chat; returns the answer."""
        return await client.post(self._urls[decoder], CHAT, body)


@dataclass(frozen=True)
class Percentiles:
    """Of times, in milliseconds."""

    p50: float
    p99: float


@dataclass(frozen=True)
class Taken:
    """One open-loop run: until the first words, and until the end of the answer."""

    first: Percentiles
    total: Percentiles


def chats(decoders: Sequence[str], count: int, seed: int, *, stream: bool) -> list[Chat]:
    """Chats of random words, for each decoder in turn."""
    source = random.Random(seed)
    known = words()
    made = []
    for number in range(count):
        text = " ".join(source.choices(known, k=PROMPT_WORDS))
        body = {
            "model": decoders[number % len(decoders)],
            "messages": [{"role": "user", "content": text}],
            "max_tokens": OUTPUT_TOKENS,
            "stream": stream,
        }
        made.append((decoders[number % len(decoders)], msgspec.json.encode(body)))
    return made


async def warm_up(target: Target, decoders: Sequence[str], client: Client | None = None) -> None:
    """Let connections, caches and code paths come into being."""
    for stream in (False, True):
        work = chats(decoders, _WARM_UP, 1, stream=stream)
        await _closed_loop(target, work, client or Client())


async def open_loop(
    target: Target, decoders: Sequence[str], mode: Mode, rate: float, seconds: float, seed: int
) -> Taken:
    """Send `rate` chats a second; one seed means the same chats at the same times."""
    source = random.Random(seed)
    work = chats(decoders, round(rate * seconds), seed, stream=mode.stream)
    client = Client(quick_ack=mode.quick_ack)
    due = perf_counter() + 0.02
    times, tasks = [], []
    for decoder, body in work:
        due += source.expovariate(rate)
        times.append(due)
        if (wait := due - perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.ensure_future(target.post(client, decoder, body)))
    replies = await asyncio.gather(*tasks)
    client.close()
    return Taken(
        _percentiles([reply.first - at for reply, at in zip(replies, times, strict=True)]),
        _percentiles([reply.done - at for reply, at in zip(replies, times, strict=True)]),
    )


async def carried(
    target: Target, decoders: Sequence[str], mode: Mode, count: int, pids: Sequence[int]
) -> dict[str, float]:
    """Requests/s with 32 clients that wait for each answer, and CPU ms per request of `pids`."""
    work = chats(decoders, count, 2, stream=mode.stream)
    cpu, begin = _cpu_seconds(pids), perf_counter()
    await _closed_loop(target, work, Client())
    seconds = perf_counter() - begin
    return {
        "requests_per_second": count / seconds,
        "cpu_ms_per_request": (_cpu_seconds(pids) - cpu) / count * 1000,
    }


async def _closed_loop(target: Target, work: Sequence[Chat], client: Client) -> None:
    left = iter(work)

    async def one() -> None:
        for decoder, body in left:
            await target.post(client, decoder, body)

    await asyncio.gather(*(one() for _ in range(_CLIENTS)))
    client.close()


def _percentiles(seconds: Sequence[float]) -> Percentiles:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return Percentiles(cuts[49] * 1000, cuts[98] * 1000)


def _cpu_seconds(pids: Sequence[int]) -> float:
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(one[11]) + int(one[12]) for one in fields) / _TICKS


def added(taken: Taken, ground: Taken) -> dict[str, Any]:
    """What a system adds to each percentile, in milliseconds."""
    return {
        "first_p50": taken.first.p50 - ground.first.p50,
        "first_p99": taken.first.p99 - ground.first.p99,
        "total_p50": taken.total.p50 - ground.total.p50,
        "total_p99": taken.total.p99 - ground.total.p99,
    }
