"""More than the cluster can take: it must say so, serve what it has taken, and be as before."""

from __future__ import annotations

import asyncio
import resource
import time
from collections import Counter
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from benchmarks.faults.client import Ending, Outcome
from benchmarks.faults.scene import Fault, Scene
from ps_sglang.open_files import raise_limit

_AT_ONCE: Final = 1000
_CONNECTIONS: Final = 10_000
_HELD_S: Final = 5.0
_STEP: Final = 250
_RATE: Final = 100
_SPARE_FILES: Final = 500


def _endings(outcomes: list[Outcome]) -> dict[str, int]:
    """How many ended how; any other 5xx than 503 is a fault of ours."""
    bad = [one for one in outcomes if (one.status or 0) >= 500 and one.status != 503]
    if bad:
        raise AssertionError(f"{len(bad)} requests of a flood: {bad[0].status} {bad[0].reason}")
    return dict(Counter(one.ending.value for one in outcomes))


class AtOnce(Fault):
    """1,000 requests at once."""

    async def inject(self, scene: Scene) -> None:
        turns = [turn for turns in scene.script.conversations for turn in turns]
        sent = [
            scene.send(turns[number % len(turns)], stream=number % 2 == 0, tokens=8)
            for number in range(_AT_ONCE)
        ]
        self.figures["endings"] = _endings(list(await asyncio.gather(*sent)))


class AtARate(Fault):
    """100 requests a second for some seconds. For `compared_s` before and after it agents' waiting
    times are compared."""

    def __init__(self, seconds: float, compared_s: float) -> None:
        super().__init__()
        self._seconds = seconds
        self.compared_s = compared_s

    async def inject(self, scene: Scene) -> None:
        turns = [turn for turns in scene.script.conversations for turn in turns]
        began, sent = time.monotonic(), []
        for number in range(round(self._seconds * _RATE)):
            await asyncio.sleep(max(0.0, began + number / _RATE - time.monotonic()))
            turn = turns[number % len(turns)]
            sent.append(scene.send(turn, stream=number % 2 == 0, tokens=8))
        ended = time.monotonic()
        self.figures["rate"] = len(sent) / (ended - began)
        self.figures["endings"] = _endings(list(await asyncio.gather(*sent)))
        self.figures["drained_s"] = time.monotonic() - ended
        exact = self.figures["endings"].get(Ending.EXACT.value, 0)
        self.figures["served_per_s"] = exact / (time.monotonic() - began)


class Connections(Fault):
    """10,000 connections that ask nothing, held for a while."""

    def __init__(self) -> None:
        super().__init__()
        self._held: list[asyncio.StreamWriter] = []

    async def inject(self, scene: Scene) -> None:
        address = urlsplit(scene.client.url)
        host, port = address.hostname, address.port
        for _ in range(_CONNECTIONS // _STEP):
            results = await asyncio.gather(
                *(asyncio.wait_for(asyncio.open_connection(host, port), 5) for _ in range(_STEP)),
                return_exceptions=True,
            )
            self._held += [one[1] for one in results if not isinstance(one, BaseException)]
        self.figures["connections"] = len(self._held)
        await asyncio.sleep(_HELD_S)

    async def heal(self, scene: Scene) -> None:
        for writer in self._held:
            writer.transport.abort()
        with suppress(IndexError):  # the kernel has told the gateway when it has told us
            await self._held[-1].wait_closed()


def no_files_for_connections() -> str | None:
    """Why 10,000 connections cannot be made, if they cannot."""
    if raise_limit() >= _CONNECTIONS + _SPARE_FILES:
        return None
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return f"{_CONNECTIONS} connections need as many open files, and the limit is {most}"
