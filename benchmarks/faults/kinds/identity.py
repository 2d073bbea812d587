"""A worker that comes back as another."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.faults.kinds.processes import DECODE, OnWorker
from benchmarks.faults.scene import Scene

_REFUSED_WITHIN_S: Final = 60.0
_STAYS_S: Final = 5.0
_POLL_S: Final = 0.1


class OtherModel(OnWorker):
    """A decode worker dies, and what is started on its port serves another model under its name.

    It must be refused while the agents ask. Then it dies as well, and the right one comes back.
    """

    def __init__(self) -> None:
        super().__init__(DECODE)
        self._name = ""
        self._folder: Path | None = None
        """Of the model that is put aside."""

    async def inject(self, scene: Scene) -> None:
        self._name, leader = await self.victim(scene)
        (decoder,) = (await scene.system.workers())[self._name]["decoders"]
        models = scene.system.what.models
        other = next(path for name, path in models.items() if name != decoder)
        self._folder = models[decoder]
        self._folder.rename(_aside(self._folder))
        self._folder.symlink_to(other)
        await self.note_streams(scene, self._name)
        os.kill(leader, signal.SIGKILL)
        scene.agents.resume()
        self.figures["refused_s"] = await self._refused(scene)
        await asyncio.sleep(_STAYS_S)

    async def heal(self, scene: Scene) -> None:
        if self._folder is None:
            return
        self._folder.unlink()
        _aside(self._folder).rename(self._folder)
        self.replaced = {self._name: scene.system.leaders()[self._name]}
        os.kill(self.replaced[self._name], signal.SIGKILL)

    async def _refused(self, scene: Scene) -> float:
        """In how many seconds it is refused for its weights."""
        began = time.monotonic()
        worker: dict[str, Any] = {}
        while worker.get("state") != "refused":
            if time.monotonic() > began + _REFUSED_WITHIN_S:
                raise AssertionError(f"another model in {self._name}'s place: {worker}")
            await asyncio.sleep(_POLL_S)
            worker = (await scene.system.workers()).get(self._name, {})
        if "weights: wanted" not in worker["problem"]:
            raise AssertionError(f"{self._name} is refused, but because {worker['problem']}")
        return time.monotonic() - began


def _aside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-aside")


def no_other_model(kind: str) -> str | None:
    """Why no worker of models of this kind can be given another, if that is so."""
    return None if kind == "tiny" else "only models that were made for it may be changed"
