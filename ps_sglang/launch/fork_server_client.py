"""The launcher's end of its fork server: start it, command it, know what it reported."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from ps_sglang.launch.messages import (
    Command,
    Exited,
    Imported,
    Start,
    Started,
    Stop,
    decode_event,
    encode,
)
from ps_sglang.progress import progress

_HOST_STOP_S: Final = 5.0


class ForkServerClient:
    """A running fork server and everything it has reported so far."""

    def __init__(
        self,
        runtime: Path,
        checkpoint: Path | None,
        environ: Mapping[str, str],
        log: Path,
        module: str = "ps_sglang.launch.fork_server",
    ) -> None:
        argv = [sys.executable, "-m", module, str(runtime)]
        if checkpoint is not None:
            argv.append(str(checkpoint))
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=dict(environ),
                start_new_session=True,  # the terminal's Ctrl-C is for the launcher alone
            )
        self._changed = threading.Condition()
        self.import_s: float | None = None
        self.pids: dict[str, int] = {}
        self.exits: dict[str, int] = {}
        self.gone = False
        threading.Thread(target=self._read, name="fork-server-events", daemon=True).start()

    @property
    def pid(self) -> int:
        """Process id of the fork server, parent of all processes of the cluster."""
        return self._process.pid

    def send(self, command: Command) -> None:
        """Command the fork server; one that is gone is seen in `gone`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(encode(command) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return

    def start(self, command: Start) -> None:
        """Start a process, maybe in place of one of its name that has ended."""
        with self._changed:
            self.exits.pop(command.name, None)
        self.send(command)

    def wait_for(self, predicate: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Block until `predicate` holds or the time is over; it is asked after each event."""
        with self._changed:
            return self._changed.wait_for(predicate, timeout_s)

    def stop(self, name: str, grace_s: float) -> None:
        """End one process: SIGTERM, then SIGKILL after `grace_s`; returns when it is gone."""
        if name in self.pids and name not in self.exits:
            self.send(Stop((name,), grace_s))
            self.wait_for(lambda: name in self.exits or self.gone, grace_s + 2.0)

    def close(self, grace_s: float) -> None:
        """End everything: SIGTERM, SIGKILL after `grace_s`, then the fork server itself."""
        running = tuple(name for name in self.pids if name not in self.exits)
        if running and grace_s > 0:
            self.send(Stop(running, grace_s))
            self.wait_for(lambda: self.gone or set(running) <= set(self.exits), grace_s + 1.0)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # one that was killed leaves a command in the buffer
            self._process.stdin.close()  # it kills what is left and removes its folder
        if self.import_s is None:
            self._process.kill()  # still importing: it has started nothing and cannot listen
        try:
            self._process.wait(_HOST_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the kernel then kills its children
            self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as events:
            for line in events:
                with self._changed:
                    try:
                        self._note(line)
                    except (ValueError, RecursionError) as error:  # a library that prints, say
                        progress(f"the fork server wrote no event: {line[:200]!r} ({error})")
                    self._changed.notify_all()
        with self._changed:
            self.gone = True
            self._changed.notify_all()

    def _note(self, line: bytes) -> None:
        match decode_event(line):
            case Imported(seconds):
                self.import_s = seconds
            case Started(name, pid):
                self.pids[name] = pid
            case Exited(name, status):
                self.exits[name] = status
