"""The fork server: parent of all workers and of the gateway, in a process of its own.

    python -m ps_sglang.launch.fork_server RUNTIME_FOLDER [CHECKPOINT_FOLDER]

It exists for two reasons. On a CPU, importing SGLang costs more time and memory than a small
model: given a checkpoint, the fork server imports SGLang and loads that tokenizer, and every
worker is a fork. And it outlives a launcher that is killed: on end of file it kills what it
started and removes the runtime folder.

A fork copies only the forking thread, so nothing here starts one: no thread pool, no
OpenMP region, no ZeroMQ context, no event loop. SGLang's own sub-processes (scheduler,
detokenizer) are forks as well, because `keep_fork` turns its
`set_start_method("spawn")` into nothing.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import selectors
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from ps_sglang.launch.forked_process import become, detach
from ps_sglang.launch.messages import (
    Event,
    Exited,
    Imported,
    Loaded,
    Start,
    Started,
    Stop,
    decode_command,
    encode,
)
from ps_sglang.launch.procfs import (
    SHARED_MEMORY,
    descendants,
    session_members,
    shared_memory_files,
)
from ps_sglang.progress import progress

_PR_SET_CHILD_SUBREAPER: Final = 36
_SCAN_S: Final = 1.0
"""How often, while workers load, the shared memory that they have mapped is noted down."""


class ForkServer:
    """Starts, reaps and stops processes on the launcher's command."""

    def __init__(self, runtime: Path) -> None:
        self._runtime = runtime
        self._pids: dict[int, str] = {}
        self._kill_at: dict[int, float] = {}
        self._foreign = set(Path(SHARED_MEMORY).glob("*"))
        self._shared_memory: set[Path] = set()
        self._loading = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._buffer = b""

    def serve(self) -> Start | None:
        """Work until the launcher is gone: None. In a fork: the process to become."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ)
            selector.register(self._wake_read, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select(self._next_tick())}
                if 0 in ready:
                    data = os.read(0, 1 << 16)
                    if not data:
                        return None
                    for line in self._lines(data):
                        start = self._obey(line)
                        if start is not None:
                            return start
                if self._wake_read in ready:
                    os.read(self._wake_read, 1 << 16)
                self._tick()

    def clean_up(self) -> None:
        """Kill every descendant and remove what they leave behind."""
        while self._kill_descendants():
            os.waitpid(-1, 0)
        for path in self._shared_memory - self._foreign:  # those were there before, only mapped
            path.unlink(missing_ok=True)
        shutil.rmtree(self._runtime, ignore_errors=True)

    def _kill_descendants(self) -> bool:
        """Whether there was something to wait for.

        A process counts until it is reaped: a zombie may have threads that still hold its
        sockets. Its children are the fork server's from then on.
        """
        pids = descendants(os.getpid())
        self._kill(pids)
        return bool(pids)

    def _kill(self, pids: Sequence[int]) -> None:
        """SIGKILL, after noting their shared memory; stopped, they cannot map more meanwhile."""
        _signal(pids, signal.SIGSTOP)
        self._note_shared_memory(pids)
        _signal(pids, signal.SIGKILL)

    def _lines(self, data: bytes) -> list[bytes]:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return lines

    def _obey(self, line: bytes) -> Start | None:
        try:
            command = decode_command(line)
        except (ValueError, RecursionError) as error:
            progress(f"no command of the launcher: {line[:200]!r} ({error})")
            return None
        match command:
            case Start() as start:
                return self._start(start)
            case Stop() as stop:
                self._stop(stop)
            case Loaded():
                self._note_shared_memory(descendants(os.getpid()))
                self._loading = False
        return None

    def _start(self, start: Start) -> Start | None:
        fork_server = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._leave()
            detach(start, fork_server)
            return start
        self._pids[pid] = start.name
        self._loading = True
        tell(Started(start.name, pid))
        return None

    def _leave(self) -> None:
        """In the fork: drop the fork server's wake-up pipe."""
        signal.set_wakeup_fd(-1)
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _stop(self, stop: Stop) -> None:
        deadline = time.monotonic() + stop.grace_s
        for pid, name in self._pids.items():
            if not stop.names or name in stop.names:
                self._note_shared_memory(session_members(pid))
                _signal([pid], signal.SIGTERM)
                self._kill_at[pid] = deadline

    def _next_tick(self) -> float | None:
        """Seconds until something must be done unasked."""
        waits = [deadline - time.monotonic() for deadline in self._kill_at.values()]
        if self._loading:
            waits.append(_SCAN_S)
        return max(0.0, min(waits)) if waits else None

    def _tick(self) -> None:
        for pid, deadline in self._kill_at.items():
            if time.monotonic() >= deadline:
                self._kill(session_members(pid))
        if self._loading:
            self._note_shared_memory(descendants(os.getpid()))
        self._reap_all()

    def _reap_all(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._forget(pid, os.waitstatus_to_exitcode(status))

    def _forget(self, pid: int, status: int) -> None:
        name = self._pids.pop(pid, None)
        if name is None:  # a worker's own child, re-parented to this subreaper
            return
        self._kill_at.pop(pid, None)
        self._kill(session_members(pid))
        tell(Exited(name, status))

    def _note_shared_memory(self, pids: Iterable[int]) -> None:
        for pid in pids:
            self._shared_memory.update(shared_memory_files(pid))


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def tell(event: Event) -> None:
    """Write one event; a launcher that is gone is noticed on the command pipe."""
    try:
        os.write(1, encode(event) + b"\n")
    except BrokenPipeError:
        return


def keep_fork() -> None:
    """Make `fork` the start method for good: SGLang asks for `spawn` and would import anew."""
    multiprocessing.set_start_method("fork")

    def ignore(*_: Any, **__: Any) -> None:
        return None

    # `torch.multiprocessing` copies the function when imported, so this comes before it.
    multiprocessing.set_start_method = ignore


def warm_up(checkpoint: Path) -> None:
    """Import and load what every worker needs; keep the garbage collector off it.

    Collecting again and again among so many new objects takes a quarter of the imports' time.

    Raises RuntimeError if something imported `prometheus_client`, which decides when it is
    imported where its values live; every worker needs a folder of its own.
    """
    gc.disable()
    from ps_sglang.engine.preload import warm

    warm(checkpoint)
    if "prometheus_client" in sys.modules:
        raise RuntimeError("prometheus_client must not be imported before the workers are forked")
    gc.collect()
    gc.freeze()
    gc.enable()


def main() -> None:
    """Serve the launcher; the forks leave through here as well, as the worker's program."""
    runtime, *checkpoint = sys.argv[1:]
    began = time.monotonic()
    adopt_orphans()
    if checkpoint:
        keep_fork()
        warm_up(Path(checkpoint[0]))
    tell(Imported(time.monotonic() - began))
    server = ForkServer(Path(runtime))
    start = server.serve()
    if start is None:
        server.clean_up()
        os._exit(0)  # nothing is left to finalise, and torch would take a second for it
    become(start)


def adopt_orphans() -> None:
    """Become the parent of orphans, and deaf to the terminal's Ctrl-C."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


if __name__ == "__main__":
    main()
