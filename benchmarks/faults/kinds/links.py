"""The link between two hosts, cut or slow."""

from __future__ import annotations

import asyncio
from typing import Final
from urllib.parse import urlsplit

from benchmarks.faults import network
from benchmarks.faults.scene import Fault, Scene

_SENT: Final = 3
"""Of each long prompt and each long answer."""
_LONGEST_WAIT_S: Final = 1.0


class _OnLink(Fault):
    """Befalls the link for some seconds, while pages cross it, prompts and answers."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    async def _bring_traffic(self, scene: Scene) -> None:
        for turn in (*scene.script.long, *scene.script.talk):
            for _ in range(_SENT):
                scene.send(turn, stream=True)
        await asyncio.sleep(scene.source.uniform(0, _LONGEST_WAIT_S))


class CutLink(_OnLink):
    """Nothing gets through. The streams that come from the other host are struck."""

    async def inject(self, scene: Scene) -> None:
        await self._bring_traffic(scene)
        for name, worker in (await scene.system.workers()).items():
            if urlsplit(worker["url"]).hostname == network.THERE:
                await self.note_streams(scene, name)
        network.cut()
        await asyncio.sleep(self._seconds)

    async def heal(self, scene: Scene) -> None:
        network.mend()


class SlowLink(_OnLink):
    """So little gets through that the pages of a long prompt take seconds."""

    _narrow = False

    async def inject(self, scene: Scene) -> None:
        network.narrow(scene.system.what.narrow_link)
        self._narrow = True
        await self._bring_traffic(scene)
        await asyncio.sleep(self._seconds)

    async def heal(self, scene: Scene) -> None:
        if self._narrow:
            network.widen()
