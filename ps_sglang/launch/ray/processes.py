"""The commands of a cluster, each in an actor: what ended runs again, or is given up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ps_sglang.errors import LaunchError, ServingEndedError
from ps_sglang.launch.processes import GATEWAY
from ps_sglang.launch.ray.command import ActorCommand, ChildEnd
from ps_sglang.launch.restarts import Restarts
from ps_sglang.progress import OnProgress

if TYPE_CHECKING:
    from ps_sglang.launch.ray.session import Actor, RaySession

_TICK_S: Final = 1.0
_GATEWAY_END_S: Final = 5.0
_END_S: Final = 60.0
"""A worker that leaves lets its requests end for up to 30 s, and then stops its engine."""


@dataclass
class ActorProcess:
    """An actor and what it runs.

    `run` is Ray's promise of the command's end, None while it is down. Then `restart_at` is set, or
    it was `given_up`. One that was told to stop is killed at `leave_by`.
    """

    actor: Actor
    command: ActorCommand
    restarts: Restarts
    run: Any = None
    restart_at: float | None = None
    leave_by: float | None = None
    given_up: bool = False

    @property
    def name(self) -> str:
        """What Ray and messages call it."""
        return self.command.name


class ActorProcesses:
    """All actors of a cluster; `most` restarts of each command are tried in ten minutes.

    The gateway may take `drain_s` seconds to end its requests.
    Restarts of actors whose nodes have died are Ray's own, and not counted.
    """

    def __init__(
        self,
        session: RaySession,
        most: int,
        drain_s: float,
        on_progress: OnProgress,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.all: list[ActorProcess] = []
        """Those that run, come back, or were given up."""
        self.is_up = False
        """Before the cluster is up, the end of any command is the end of all."""
        self._session = session
        self._most = most
        self._drain_s = drain_s
        self._on_progress = on_progress
        self._clock = clock

    def run(self, actor: Actor, command: ActorCommand) -> ActorProcess:
        """Have an actor run a command."""
        process = ActorProcess(actor, command, Restarts(self._most), actor.run.remote(command))
        self.all.append(process)
        return process

    def leave(self, process: ActorProcess) -> None:
        """Have a worker end its requests, and leave the cluster."""
        if process.run is None:
            self._drop(process)
            return
        process.leave_by = self._clock() + _END_S
        process.actor.stop.remote()

    def follow(self) -> None:
        """Wait up to a second for the end of a command, and mend what has ended.

        Raises LaunchError while the cluster starts, ServingEndedError if nothing can be served.
        """
        ended = self._session.wait([one.run for one in self.all if one.run is not None], _TICK_S)
        now = self._clock()
        for process in list(self.all):
            if process.run is not None and process.run in ended:
                end = self._session.end_of(process.run)
                process.run = None
                self._ended(process, end, now)
            elif process.leave_by is not None and now > process.leave_by:
                self._drop(process)
            elif process.restart_at is not None and now >= process.restart_at:
                process.restart_at = None
                process.run = process.actor.run.remote(process.command)

    def close(self) -> None:
        """End all, the gateway first: workers need not say goodbye to it."""
        self._end([one for one in self.all if one.name == GATEWAY], self._drain_s + _GATEWAY_END_S)
        self._end([one for one in self.all if one.name != GATEWAY], _END_S)

    def _ended(self, process: ActorProcess, end: ChildEnd, now: float) -> None:
        name = process.name
        if process.leave_by is not None:
            self._drop(process)
            return
        message = f"{name} ended with {end.status}"
        if not self.is_up:
            starting = f"{message} while the cluster was starting"
            raise LaunchError(starting, worker=name, log_tail=end.log_tail)
        seconds = process.restarts.died(now)
        if seconds is not None:
            process.restart_at = now + seconds
            coming = process.restarts.coming(seconds)
            self._on_progress(f"{message}; {coming}\n{end.log_tail}")
            return
        process.given_up = True
        self._session.kill(process.actor)
        limit = f"{message}, and {process.restarts.limit}"
        if name == GATEWAY or all(one.given_up for one in self.all if one.name != GATEWAY):
            raise ServingEndedError(limit, worker=name, log_tail=end.log_tail)
        self._on_progress(f"{limit}\n{end.log_tail}")

    def _drop(self, process: ActorProcess) -> None:
        self._session.kill(process.actor)
        self.all.remove(process)
        self._on_progress(f"{process.name} has left")

    def _end(self, processes: Sequence[ActorProcess], seconds: float) -> None:
        for process in processes:
            process.actor.stop.remote()
        self._session.wait_all([one.run for one in processes if one.run is not None], seconds)
        for process in processes:
            self._session.kill(process.actor)
