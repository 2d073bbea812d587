"""A cluster that nobody asks for anything."""

from __future__ import annotations

import asyncio

from benchmarks.faults.client import Ending
from benchmarks.faults.scene import Fault, Scene


class Idle(Fault):
    """Nobody asks for some seconds; the very first requests afterwards are answered."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    async def inject(self, scene: Scene) -> None:
        await scene.agents.pause()
        await asyncio.sleep(self._seconds)
        sent = [scene.send(turns[-1]) for turns in scene.script.conversations]
        outcomes = await asyncio.gather(*sent)
        if bad := [one for one in outcomes if one.ending is not Ending.EXACT]:
            raise AssertionError(f"{len(bad)} of the first {len(sent)} requests: {bad[0]}")
