"""The second host of the faults benchmark, without a cluster: its link cut, mended and narrowed."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.faults import network

pytestmark = pytest.mark.skipif(
    (why := network.no_second_host()) is not None, reason=why or "it can be had"
)

PORT = 8000
# Answers each connection with what comes on it.
ECHO = """
import socket, sys
with socket.create_server(("", int(sys.argv[1]))) as server:
    print(open("/proc/sys/kernel/random/boot_id").read().strip(), flush=True)
    while True:
        connection, _ = server.accept()
        while content := connection.recv(1 << 16):
            connection.sendall(content)
"""


@pytest.fixture
def boot_id(tmp_path: Path) -> Iterator[str]:
    """That of the second host, on which a server runs."""
    with network.second_host():
        command = network.there([sys.executable, "-c", ECHO, str(PORT)], tmp_path)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            try:
                yield server.stdout.readline().strip()
            finally:
                server.kill()


def echoed(connection: socket.socket, content: bytes) -> bytes:
    connection.sendall(content)
    found = b""
    while len(found) < len(content):
        found += connection.recv(1 << 16)
    return found


def limits() -> int:
    """How many ends of the cable let no more than a megabyte a second through."""
    shown = [
        subprocess.run(["tc", *end[:-1], "qdisc", "show", "dev", end[-1]], capture_output=True)
        for end in network._ENDS
    ]
    return sum(b"tbf" in one.stdout and b"rate 8Mbit" in one.stdout for one in shown)


def test_another_host(boot_id: str) -> None:
    here = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert boot_id not in ("", here)
    with socket.create_connection((network.THERE, PORT), 10) as connection:
        assert echoed(connection, b"hello") == b"hello"
        network.cut()
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            echoed(connection, b"lost?")
        network.mend()
        connection.settimeout(30)
        assert connection.recv(5, socket.MSG_WAITALL) == b"lost?"
        network.narrow(1_000_000)
        assert limits() == 2
        assert echoed(connection, bytes(400_000)) == bytes(400_000)
        network.widen()
        assert limits() == 0
