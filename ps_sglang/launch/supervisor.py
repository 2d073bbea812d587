"""Restarts what dies or hangs in a running cluster, so that nobody has to come for it.

A process that ended is started again in its place, with a back-off (`restarts`). A worker that
hangs is found by the gateway, which calls it broken, and then asked once more by its own launcher,
as it may be the way between the two that is broken. A gateway that hangs answers no renewal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from ps_sglang.errors import ServingEndedError
from ps_sglang.launch.membership import Membership
from ps_sglang.launch.messages import Loaded
from ps_sglang.launch.processes import FORK_SERVER, GATEWAY, Processes, is_gateway
from ps_sglang.launch.readiness import Probe
from ps_sglang.launch.restarts import Restarts
from ps_sglang.progress import OnProgress

WEDGED_S: Final = 30.0
"""So long a worker may be broken, or the gateway silent, and then as long not answer a probe."""
_TICK_S: Final = 1.0


@dataclass
class _Process:
    """One process under supervision.

    `restart_at` is set while it is down, `probe` while it starts, or while it is asked whether it
    hangs (`suspected`). Both end at `deadline`. Nobody has heard well of it since `broken_since`.
    """

    restarts: Restarts
    restart_at: float | None = None
    probe: Probe | None = None
    suspected: bool = False
    began: float = 0.0
    deadline: float = 0.0
    broken_since: float | None = None
    given_up: bool = False
    kill_reason: str | None = None


class Supervisor:
    """Looks after the `names` of a cluster's processes.

    `most` restarts of each are tried in ten minutes; a worker gets `ready_s` seconds to start.
    `outlook` says what is served without those that are down.
    """

    def __init__(
        self,
        processes: Processes,
        membership: Membership,
        names: Iterable[str],
        *,
        most: int,
        ready_s: float,
        outlook: Callable[[], str],
        on_progress: OnProgress,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._processes = processes
        self._membership = membership
        self._supervised = {name: _Process(Restarts(most)) for name in names}
        self._ready_s = ready_s
        self._outlook = outlook
        self._on_progress = on_progress
        self._clock = clock

    def run(self) -> None:
        """Supervise for ever, and keep log files short.

        Raises ServingEndedError when nothing is left to supervise: the gateway or all workers died
        too often, or the fork server died, and with it all that it had started.
        """
        link = self._processes.link
        while True:
            link.wait_for(lambda: link.gone or bool(self._newly_dead()), self._wait_s())
            if link.gone:
                message = "the fork server died, and all workers with it"
                raise self._processes.failure(FORK_SERVER, message, ServingEndedError)
            self.look()
            self._processes.logs.rotate(self._on_progress)

    def look(self) -> None:
        """Do what is to be done now; raises ServingEndedError."""
        for name in self._newly_dead():
            self._died(name, self._supervised[name])
        for name, process in self._supervised.items():
            if process.given_up:
                continue
            if process.restart_at is not None:
                if self._clock() >= process.restart_at:
                    self._restart(name, process)
            elif process.probe is not None:
                self._judge(name, process)
            else:
                self._watch(name, process)

    def close(self) -> None:
        """Ask nothing any more."""
        for process in self._supervised.values():
            if process.probe is not None:
                process.probe.cancel()

    def _newly_dead(self) -> list[str]:
        return [
            name
            for name in self._processes.dead & self._supervised.keys()
            if self._supervised[name].restart_at is None and not self._supervised[name].given_up
        ]

    def _wait_s(self) -> float:
        now = self._clock()
        due = [one.restart_at - now for one in self._supervised.values() if one.restart_at]
        return max(0.0, min([_TICK_S, *due]))

    def _died(self, name: str, process: _Process) -> None:
        now = self._clock()
        self._forget_probe(process)
        ending = process.kill_reason or self._processes.ending(name)
        process.kill_reason = process.broken_since = None
        seconds = process.restarts.died(now)
        log = f"Log: {self._processes.log(name)}"
        if seconds is not None:
            process.restart_at = now + seconds
            if name != GATEWAY and self._processes.moves(name):
                self._leave(name)
            coming = process.restarts.coming(seconds)
            outlook = "" if is_gateway(name) else f"{self._outlook()}; "
            self._on_progress(f"{name} {ending}; {outlook}{coming}. {log}")
            return
        process.given_up = True
        limit = f"{ending}, and {process.restarts.limit}"
        if name == GATEWAY or all(
            one.given_up for key, one in self._supervised.items() if not is_gateway(key)
        ):
            raise self._processes.failure(name, f"{name} {limit}", ServingEndedError)
        self._leave(name)
        self._on_progress(f"{name} {limit}; {self._outlook()}. {log}")

    def _restart(self, name: str, process: _Process) -> None:
        process.restart_at = None
        process.began = self._clock()
        process.deadline = process.began + self._ready_s
        if is_gateway(name):
            self._processes.start_gateway(name)
        else:
            self._processes.restart_worker(name)
        process.probe = self._processes.probe(name)

    def _judge(self, name: str, process: _Process) -> None:
        """Whether one that starts is ready, or one that is suspected answers."""
        assert process.probe is not None
        suspected, now = process.suspected, self._clock()
        if process.probe.ready:
            self._forget_probe(process)
            process.broken_since = None
            if suspected:
                return
            self._processes.link.send(Loaded())
            if not is_gateway(name) and name not in self._membership.members:
                self._membership.add(self._processes.worker(name))
            self._on_progress(f"{name} is back after {now - process.began:.1f} s")
        elif now > process.deadline:
            self._kill(
                name,
                process,
                "hangs" if suspected else f"was not ready within {self._ready_s:g} s",
            )

    def _watch(self, name: str, process: _Process) -> None:
        now = self._clock()
        if self._is_well(name):
            process.broken_since = None
        elif process.broken_since is None:
            process.broken_since = now
        elif now - process.broken_since > WEDGED_S:
            process.suspected = True
            process.probe = self._processes.probe(name)
            process.deadline = now + WEDGED_S

    def _leave(self, name: str) -> None:
        if name in self._membership.members:
            self._membership.drop(name)

    def _is_well(self, name: str) -> bool:
        if name == GATEWAY:
            return self._membership.hears_gateway
        if is_gateway(name):
            return False  # nobody is sure to hear of it, so that it is asked time and again
        member = self._membership.members.get(name)
        return member is None or member.state != "broken"

    def _kill(self, name: str, process: _Process, reason: str) -> None:
        """End one that hangs; its end is then noticed as any other's."""
        self._forget_probe(process)
        process.kill_reason = f"{reason}, and was killed"
        self._processes.link.stop(name, 0.0)

    def _forget_probe(self, process: _Process) -> None:
        if process.probe is not None:
            process.probe.cancel()
        process.probe, process.suspected = None, False
