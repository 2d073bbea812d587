"""What runs inside an actor: one child process, whose end the actor tells."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

import msgspec
import ray.util

from ps_sglang.launch.ports import free_ports
from ps_sglang.launch.ray.command import ActorCommand, ChildEnd
from ps_sglang.launch.readiness import tail

_STDOUT: Final = 1
_STDERR: Final = 2


class ProcessActor:
    """Owns one child process, which ends with it, and so with its host.

    Ray writes its `name` before each line of its log.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return self._name

    def host(self) -> str:
        """The address of its host, as Ray knows it."""
        address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return address

    def free_ports(self, count: int) -> list[int]:
        """Ports of its host that nothing listens on."""
        return free_ports(count)

    def run(self, command: ActorCommand) -> ChildEnd:
        """Run a command to its end. Ray calls this again on a restarted actor."""
        with self._lock:
            if self._stopped:
                return ChildEnd(0, "")
            # stdout and stderr are the actor's, which are its log in Ray.
            self._child = subprocess.Popen(
                [sys.executable, "-m", "ps_sglang.launch.ray.child"], stdin=subprocess.PIPE
            )
        assert self._child.stdin is not None
        given = msgspec.structs.replace(command, log_dir=_log_dir(command))
        self._child.stdin.write(msgspec.json.encode(given) + b"\n")
        self._child.stdin.flush()  # and stays open for as long as this actor lives
        return ChildEnd(self._child.wait(), tail(_own_file(_STDERR)))

    def stop(self) -> None:
        """Have the command end, as SIGTERM does; `run` then returns."""
        with self._lock:
            self._stopped = True
            if self._child is not None:
                self._child.send_signal(signal.SIGTERM)


def _log_dir(command: ActorCommand) -> str | None:
    if command.log_dir is not None:
        return str(Path(command.log_dir) / command.name)
    # Where `ray logs` finds it, as it does this actor's own log.
    log = _own_file(_STDOUT)
    return str(log.parent / "ps_sglang" / command.name) if log.parent.name == "logs" else None


def _own_file(descriptor: int) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{descriptor}"))
