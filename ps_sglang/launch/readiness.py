"""When a worker is ready: it has answered a request, not just opened its port."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.gateway_http import Credentials, GatewayRefused, GatewayUnreachable, call
from ps_sglang.launch import procfs

_TAIL_LINES: Final = 20
_TAIL_BYTES: Final = 1 << 16
_LINE_LENGTH: Final = 500
# SGLang gives a health request 20 s before it calls itself unhealthy.
_PROBE_TIMEOUT_S: Final = 25.0
_POLL_S: Final = 0.1


class Probe(threading.Thread):
    """Asks a process whether it `answers` until it does; `ready` then holds.

    A daemon, as a request to a worker that hangs must not hold up a Ctrl-C.
    """

    def __init__(self, name: str, answers: Callable[[], bool]) -> None:
        super().__init__(name=f"probe-{name}", daemon=True)
        self._answers = answers
        self._answered = threading.Event()
        self._cancelled = threading.Event()

    @property
    def ready(self) -> bool:
        """Whether it has answered."""
        return self._answered.is_set()

    def cancel(self) -> None:
        """Ask no more."""
        self._cancelled.set()

    def run(self) -> None:
        while not self._cancelled.is_set():
            if self._answers():
                self._answered.set()
                return
            self._cancelled.wait(_POLL_S)


def is_ready(
    host: str, port: int, pid: Callable[[], int | None], key: ClusterKey | None = None
) -> bool:
    """Whether a worker answers.

    `pid` tells the process that leads the worker's session, once there is one: another program may
    have taken the port meanwhile, and answer there. The worker then ends as it cannot bind it.
    Nobody else gets the `key`.
    """
    leader = pid()
    return leader is not None and procfs.listens(leader, port) and answers(host, port, key)


def answers(host: str, port: int, key: ClusterKey | None = None) -> bool:
    """Whether a worker's engine runs a request now.

    `/health_generate` sends one token through the scheduler, with the bootstrap host that
    SGLang reserves for such probes, so neither role waits for a peer.
    """
    connection = http.client.HTTPConnection(host, port, timeout=_PROBE_TIMEOUT_S)
    try:
        headers = {} if key is None else {"Authorization": key.authorization}
        connection.request("GET", "/health_generate", headers=headers)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def gateway_url(log: Path, line_for: str = "ready") -> str | None:
    """The address in the gateway's ready line, or in its `admin` line, once there is one."""
    if not log.exists():
        return None
    for line in log.read_text(errors="replace").splitlines():
        word, _, url = _message(line).partition(" ")
        if word == line_for and url.startswith(("http://", "https://")):
            return url.strip()
    return None


def _message(line: str) -> str:
    """What a line of a log says, in text or JSON."""
    if not line.startswith("{"):
        return line
    try:
        return str(json.loads(line)["message"])
    except (ValueError, LookupError):
        return line


def gateway_lives(gateway: str, credentials: Credentials) -> bool:
    """Whether the gateway at a URL answers."""
    try:
        call(f"{gateway}/liveness", timeout_s=_PROBE_TIMEOUT_S, credentials=credentials)
    except (GatewayRefused, GatewayUnreachable):
        return False
    return True


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("gateway", timeout=_PROBE_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_PROBE_TIMEOUT_S)
        self.sock.connect(str(self._path))


def gateway_process_lives(path: Path) -> bool:
    """Whether the gateway's process that serves others on a Unix socket answers there."""
    connection = _UnixConnection(path)
    try:
        connection.request("GET", "/liveness")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def tail(log: Path) -> str:
    """The last lines of a log, for an error message."""
    if not log.exists():
        return "(it wrote no log)"
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(f"  | {line[:_LINE_LENGTH]}" for line in lines[-_TAIL_LINES:])


def read_ahead(files: Iterable[Path]) -> None:
    """Have the kernel read weights into its cache while SGLang is still importing."""
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
