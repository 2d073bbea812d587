"""What a fault finds: a running cluster, agents that ask, and somebody who looks after the end."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import aiohttp

from benchmarks.faults.agents import Agents
from benchmarks.faults.client import Client, Ending, Outcome
from benchmarks.faults.models import Script, Turn
from benchmarks.faults.system import System
from ps_sglang.errors import LaunchError

BURST: Final = "burst"
"""By whom a fault's own requests come."""
PROBE: Final = "probe"
"""Asks whether the cluster serves again; it may find that it does not."""
_PROBES: Final = 4
"""Of each decoder; their prompts are short, so that what is measured is not the time to compute."""
_POLL_S: Final = 0.1
_WARM_S: Final = 60.0
_REST_S: Final = 45.0


@dataclass
class Scene:
    """Where a fault happens. `source` decides all that is left to chance."""

    system: System
    client: Client
    agents: Agents
    script: Script
    source: random.Random
    _sent: list[asyncio.Task[Outcome]] = field(default_factory=list)
    _salts: int = 0

    def salt(self) -> str:
        """A tenant for whom nothing is cached."""
        self._salts += 1
        return f"new {self._salts}"

    def send(self, turn: Turn, **options: Any) -> asyncio.Task[Outcome]:
        """Ask for a turn in the background, for a new tenant; see `Client.ask`."""
        options = {"by": BURST, "salt": self.salt(), **options}
        task = asyncio.create_task(self.client.ask(turn, **options))
        self._sent.append(task)
        return task

    async def settle(self) -> None:
        """Wait until all that was sent has ended."""
        sent, self._sent = self._sent, []
        await asyncio.gather(*sent)

    async def warm_up(self) -> None:
        """Whatever a process makes once for its first requests is made then, and all memory of the
        pools is used once, as the machine gives it only then."""
        if await self.whole({}, time.monotonic() + _WARM_S) is None:
            raise LaunchError(f"the cluster does not answer as it must in {_WARM_S:g} s")
        long = self.script.long
        pools = 2 * self.system.what.pool
        for turn in long * -(-pools // sum(len(turn.prompt) for turn in long)):
            self.send(turn)
        await self.settle()

    async def served(self, until: float) -> float | None:
        """When each decoder has given an exact answer again; None if one has not by `until`."""
        waiting = {turn.decoder: turn for turn in self.script.talk}
        while waiting and time.monotonic() < until:
            outcomes = await self._probe(list(waiting.values()))
            for one in outcomes:
                if one.ending is Ending.EXACT:
                    waiting.pop(one.decoder, None)
            await asyncio.sleep(_POLL_S if waiting else 0)
        return None if waiting else time.monotonic()

    async def whole(self, replaced: Mapping[str, int], until: float) -> float | None:
        """When all workers are good and all answers exact; None if that is not so by `until`."""
        while time.monotonic() < until:
            if await self.system.is_whole(replaced):
                # Several new tenants of each decoder, so that every worker has some.
                outcomes = await self._probe(self.script.talk * _PROBES)
                if all(one.ending is Ending.EXACT for one in outcomes):
                    return time.monotonic()
            await asyncio.sleep(_POLL_S)
        return None

    async def left_over(self) -> dict[str, Any]:
        """What is not at rest, a while after the last request; should be nothing."""
        until = time.monotonic() + _REST_S
        while True:
            try:
                busy = await self.system.in_work()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                busy = {"a worker does not say": repr(error)}
            if not busy or time.monotonic() > until:
                return busy
            await asyncio.sleep(_POLL_S)

    async def _probe(self, turns: Sequence[Turn]) -> list[Outcome]:
        asks = [self.client.ask(turn, PROBE, tokens=4, salt=self.salt()) for turn in turns]
        return list(await asyncio.gather(*asks))


class Fault:
    """One fault, made anew for each time. `stage` says in which state it found its victim.

    `replaced`: the processes, by name, in whose place others must run afterwards. `begun`: the ids
    of the streams that decode workers were sending when they were struck, which was at `struck_at`.
    For `compared_s` before it and after it agents' waiting times are compared. `figures` are what
    else it has measured.
    """

    may_cut: ClassVar[bool] = False
    """Whether connections may break without a word, as who should speak has died."""

    def __init__(self) -> None:
        self.stage = ""
        self.replaced: dict[str, int] = {}
        self.begun: frozenset[str] = frozenset()
        self.struck_at = 0.0
        self.compared_s = 0.0
        self.figures: dict[str, Any] = {}

    async def inject(self, scene: Scene) -> None:
        """Do it; returns when it is over, or needs to be healed."""
        raise NotImplementedError

    async def note_streams(self, scene: Scene, worker: str) -> None:
        """To be called just before a worker is struck."""
        self.begun |= await scene.system.begun_streams(worker)
        self.struck_at = time.monotonic()

    async def heal(self, scene: Scene) -> None:
        """Take it back; comes even if `inject` fails."""
        return

    async def check(self, scene: Scene) -> None:
        """Raises AssertionError if what is there again is not what was there before."""
        return
