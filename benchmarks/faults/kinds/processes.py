"""Processes that are killed or stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import ClassVar, Final

import psutil

from benchmarks.faults.client import Outcome
from benchmarks.faults.scene import Fault, Scene
from ps_sglang.launch import procfs
from ps_sglang.launch.processes import GATEWAY

PREFILL: Final = "prefill"
DECODE: Final = "decode"
_IDLE: Final = "idle"
_BUSY: Final = "busy"
_STREAMING: Final = "streaming"
_IDLE_PART: Final = 0.2
_STREAMING_PART: Final = 0.5
"""Of what befalls a busy decode worker."""
_STREAMS_WITHIN_S: Final = 30.0
_LONGEST_WAIT_S: Final = 1.0
_INDEX_S: Final = 30.0
_POLL_S: Final = 0.05
_STREAMS: Final = 6
_LONGEST: Final = 96
"""Tokens of a stream: enough to be under way when the fault comes."""


class OnWorker(Fault):
    """Befalls a worker of a role; of decode workers one that has another beside it."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role
        self._urls: dict[str, str] = {}

    async def victim(self, scene: Scene) -> tuple[str, int]:
        """Name and first process of the worker, which by now is busy, streaming or idle."""
        workers = await scene.system.workers()
        self._urls = {name: one["url"] for name, one in workers.items()}
        served = [one["decoders"] for one in workers.values()]
        fit = [
            name
            for name, one in workers.items()
            if one["role"] == self._role
            and (self._role == PREFILL or served.count(one["decoders"]) > 1)
        ]
        name = scene.source.choice(fit)
        await self._bring_to_stage(scene, name, workers[name]["decoders"])
        return name, scene.system.leaders()[name]

    async def _bring_to_stage(self, scene: Scene, name: str, decoders: list[str]) -> None:
        """At times let all end before. Else there is more to do than one worker of the role can
        begin at once, and after a random time some of it waits, some is computed, some is on its
        way, and some is being streamed. Half of the decode workers are streaming for sure."""
        if scene.source.random() < _IDLE_PART:
            self.stage = _IDLE
            await scene.agents.pause()
            return
        self.stage = _BUSY
        if self._role == PREFILL:
            sent = [scene.send(turn, stream=True) for turn in scene.script.long for _ in range(2)]
        else:
            sent = _send_streams(scene, decoders)
        await asyncio.sleep(scene.source.uniform(0, _LONGEST_WAIT_S))
        if self._role == DECODE and scene.source.random() < _STREAMING_PART:
            self.stage = _STREAMING
            until = time.monotonic() + _STREAMS_WITHIN_S
            while not await scene.system.begun_streams(name):
                if time.monotonic() > until:
                    raise AssertionError(f"{name} sends nothing")
                if all(one.done() for one in sent):  # too soon to be seen, or by another worker
                    sent = _send_streams(scene, decoders)
                await asyncio.sleep(_POLL_S)


def _send_streams(scene: Scene, decoders: Sequence[str]) -> list[asyncio.Task[Outcome]]:
    """Long answers of these decoders, more than one worker sends at once."""
    turns = [turn for turn in scene.script.talk if turn.decoder in decoders]
    return [
        # Of different lengths, so that none is taken for another's poison.
        scene.send(
            turn,
            stream=True,
            tokens=min(len(turn.answer), _LONGEST) - scene.source.randrange(16),
        )
        for turn in turns
        for _ in range(_STREAMS // len(turns))
    ]


class KillWorker(OnWorker):
    """SIGKILL to the first process of a worker, or to one below it by its `title`.

    Another must come in its place, at its address, whose tree is empty.
    """

    def __init__(self, role: str, title: str | None = None) -> None:
        super().__init__(role)
        self._title = title

    async def inject(self, scene: Scene) -> None:
        name, leader = await self.victim(scene)
        self.replaced[name] = leader
        pid = leader if self._title is None else _titled(leader, self._title)
        await self.note_streams(scene, name)
        os.kill(pid, signal.SIGKILL)
        scene.agents.resume()

    async def check(self, scene: Scene) -> None:
        workers = await scene.system.workers()
        if (urls := {name: one["url"] for name, one in workers.items()}) != self._urls:
            raise AssertionError(f"workers are at {urls}, and were at {self._urls}")


class KillGateway(Fault):
    """SIGKILL to the gateway. `index_s`: until its successor sends a prompt of before to where it
    is cached."""

    may_cut: ClassVar[bool] = True

    async def inject(self, scene: Scene) -> None:
        system, turns = scene.system, [turns[-1] for turns in scene.script.conversations]
        known = {turn: await system.to_compute(turn) for turn in turns}
        turn, new = min(known.items(), key=lambda one: inf if one[1] is None else one[1])
        self.replaced[GATEWAY] = system.leaders()[GATEWAY]
        os.kill(self.replaced[GATEWAY], signal.SIGKILL)
        began = time.monotonic()
        while (now := await system.to_compute(turn)) is None or now > (new or 0):
            if time.monotonic() > began + _INDEX_S:
                raise AssertionError(f"{now} tokens are computed again, and {new} were before")
            await asyncio.sleep(_POLL_S)
        self.figures["index_s"] = time.monotonic() - began


class KillLaunch(Fault):
    """SIGKILL to the launcher, or to its fork server. Nothing may stay behind; then it is started
    again, as a service manager would."""

    may_cut: ClassVar[bool] = True

    def __init__(self, *, fork_server: bool) -> None:
        super().__init__()
        self._fork_server = fork_server

    async def inject(self, scene: Scene) -> None:
        system = scene.system
        pids, self.replaced = system.pids(), system.leaders()
        os.kill(system.fork_server if self._fork_server else system.launcher, signal.SIGKILL)
        self.figures["gone_s"] = await system.ended(pids)
        self.figures["exit_status"] = system.exit_status
        if left := sorted(one.name for one in system.temporary.iterdir()):
            raise AssertionError(f"files stay behind: {', '.join(left)}")
        self.figures["start_s"] = await system.start()


class Stop(OnWorker):
    """SIGSTOP to all processes of a worker or the gateway, and SIGCONT `seconds` later.

    Without `seconds` there is no SIGCONT: who looks after it must end it.
    """

    def __init__(self, role: str, seconds: float | None) -> None:
        super().__init__(role)
        self._seconds = seconds
        self._stopped: list[int] = []

    async def inject(self, scene: Scene) -> None:
        if self._role == GATEWAY:
            leader = scene.system.leaders()[GATEWAY]
        else:
            name, leader = await self.victim(scene)
            if self._seconds is None:
                self.replaced[name] = leader
            await self.note_streams(scene, name)
        self._stopped = procfs.session_members(leader)
        _signal(self._stopped, signal.SIGSTOP)
        scene.agents.resume()
        await asyncio.sleep(self._seconds or 0)

    async def heal(self, scene: Scene) -> None:
        if self._seconds is not None:
            _signal(self._stopped, signal.SIGCONT)


def _titled(leader: int, title: str) -> int:
    """The process of a worker that calls itself so."""
    for pid in procfs.session_members(leader):
        with suppress(psutil.Error, OSError):
            words = (" ".join(psutil.Process(pid).cmdline()), Path(f"/proc/{pid}/comm").read_text())
            if pid != leader and any(title in text for text in words):
                return pid
    raise LookupError(f"no process below {leader} is called {title!r}")


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
