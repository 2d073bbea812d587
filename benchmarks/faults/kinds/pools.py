"""KV pools that run full: of prompts on both sides, and of answers that outgrow them."""

from __future__ import annotations

import asyncio
from typing import Final

from benchmarks.faults.kinds.clients import head_and_body
from benchmarks.faults.scene import Fault, Scene

_PROMPTS: Final = 24
_ANSWERS: Final = 48
_ABORTED: Final = 16
_ABORTED_AFTER_S: Final = (0.5, 6.0)


class FullPools(Fault):
    """Many long prompts at once, several times what any pool holds: all of them are served."""

    async def inject(self, scene: Scene) -> None:
        for number in range(_PROMPTS):
            scene.send(scene.script.long[number % len(scene.script.long)], stream=number % 2 == 0)
        await scene.settle()


class Retraction(Fault):
    """More long answers than the decode pools hold, so that some are retracted and come back;
    half as many clients more hang up in the midst of theirs."""

    async def inject(self, scene: Scene) -> None:
        turns, sent = scene.script.talk, []
        for number in range(_ANSWERS):
            sent.append(scene.send(turns[number % len(turns)], stream=number % 2 == 0))
        await asyncio.gather(*(self._abort(scene, number) for number in range(_ABORTED)))
        outcomes = await asyncio.gather(*sent)
        self.figures["retractions"] = sum(one.retractions for one in outcomes)
        if not self.figures["retractions"]:
            raise AssertionError("no pool ran full, so nothing was shown")

    async def _abort(self, scene: Scene, number: int) -> None:
        turn = scene.script.talk[number % len(scene.script.talk)]
        host, port, content = head_and_body(scene.client.url, turn, scene.salt(), stream=True)
        _, writer = await asyncio.open_connection(host, port)
        writer.write(content)
        await asyncio.sleep(scene.source.uniform(*_ABORTED_AFTER_S))
        writer.transport.abort()
