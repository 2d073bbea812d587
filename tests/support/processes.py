"""What a test started, found by an environment variable that all its processes inherit."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil

from ps_sglang.launch import procfs

MARK = "PS_SGLANG_TEST_MARK"
STOP_S = 10.0


class Marked:
    """The processes that carry one marker, this one left out."""

    def __init__(self, mark: str) -> None:
        self._entry = f"{MARK}={mark}".encode()

    def pids(self) -> list[int]:
        found = []
        for pid in psutil.pids():
            try:
                environ = Path(f"/proc/{pid}/environ").read_bytes()
            except OSError:
                continue
            # pytest's own environ, as the kernel shows it, is the one it was started with.
            if self._entry in environ.split(b"\0") and pid != os.getpid():
                found.append(pid)
        return found

    def wait_until_gone(self) -> list[int]:
        """The processes that outlive the time a stop may take."""
        processes = [psutil.Process(pid) for pid in self.pids() if psutil.pid_exists(pid)]
        psutil.wait_procs(processes, STOP_S)
        return self.pids()

    def kill_all(self) -> list[str]:
        pids = self.pids()
        names = [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in pids]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return names

    def shared_memory(self) -> set[Path]:
        return set().union(*(procfs.shared_memory_files(pid) for pid in self.pids()))

    def listening_ports(self) -> set[int]:
        ports = set()
        for pid in self.pids():
            for connection in psutil.Process(pid).net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    ports.add(connection.laddr.port)
        return ports


class Launcher:
    """`python -m ps_sglang.launch` as a user runs it, and what it has said so far."""

    def __init__(self, *arguments: str, temporary: Path) -> None:
        temporary.mkdir()
        self.temporary = temporary
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ps_sglang.launch", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": str(temporary)},
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        threading.Thread(target=self._read, daemon=True).start()

    def wait_for(self, text: str, timeout_s: float = 90) -> str:
        """The first line with `text` in it; fails if the launcher ends without one."""

        def heard() -> bool:
            return self._ended or any(text in line for line in self.lines)

        with self._changed:
            assert self._changed.wait_for(heard, timeout_s), f"no {text!r} in {self.lines}"
        found = [line for line in self.lines if text in line]
        assert found, f"ended without {text!r}: {self.lines}"
        return found[0]

    def end(self, timeout_s: float = STOP_S) -> int:
        """Wait for its end and its last line; return the exit status."""
        status = self.process.wait(timeout_s)
        with self._changed:
            assert self._changed.wait_for(lambda: self._ended, timeout_s)
        return status

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                with self._changed:
                    self.lines.append(line)
                    self._changed.notify_all()
        self.process.wait()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def can_listen(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
