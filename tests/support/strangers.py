"""What somebody without a cluster's key tries on its ports, and what nonsense one with it sends."""

from __future__ import annotations

import http.client
import os
import random
import selectors
import socket
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Final

import psutil
import zmq
from zmq.utils.monitor import recv_monitor_message

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.wires import as_client

FRAMES: Final = int(os.environ.get("GARBAGE_FRAMES", "200"))
"""Garbage of one kind for one socket; before a release 10,000."""
_DEADLINE_MS: Final = 20_000
_ENDED: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_DISCONNECTED
)


def _greeting(mechanism: bytes) -> bytes:
    """The first 64 bytes of ZMTP 3.0, as a client says them."""
    return b"\xff" + bytes(8) + b"\x7f\x03\x00" + mechanism.ljust(20, b"\0") + bytes(32)


_PUSH: Final = b"\x04\x1a\x05READY\x0bSocket-Type\x00\x00\x00\x04PUSH"
_SOURCE: Final = random.Random(11)
OPENINGS: Final = (
    b"",
    b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    bytes(64),
    b"\xff" * 64,
    _SOURCE.randbytes(300),
    _greeting(b"NULL") + _PUSH + b"\x00\x05hello",
    _greeting(b"PLAIN") + b"\x04\x10\x05HELLO\x04user\x04pass",
    _greeting(b"CURVE") + b"\x04\xc8\x05HELLO" + b"\x01\x00" + _SOURCE.randbytes(192),
    _greeting(b"CURVE") + b"\x06\xff\xff\xff\xff\xff\xff\xff\xff",
)
"""What a connection may begin with, from somebody who has no key."""


def listening_ports(pids: Iterable[int]) -> dict[int, str]:
    """The TCP ports on which any of these processes listens, and the address of each."""
    return {
        one.laddr.port: one.laddr.ip
        for pid in pids
        for one in psutil.Process(pid).net_connections("tcp")
        if one.status == psutil.CONN_LISTEN
    }


def speaking_zmtp(ports: Iterable[int], count: int) -> set[int]:
    """Those behind which ZMQ listens, once there are `count`: it is the first to speak."""
    found: set[int] = set()
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for port in ports:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), 5))
            selector.register(connection, selectors.EVENT_READ, port)
        while len(found) < count:
            ready = selector.select(_DEADLINE_MS / 1000)
            assert ready, f"{len(found)} of {count} ports speak"
            for key, _ in ready:
                assert isinstance(key.fileobj, socket.socket)
                if key.fileobj.recv(1) == b"\xff":
                    found.add(key.data)
                selector.unregister(key.fileobj)
    return found


def knock(port: int, times: int = FRAMES, host: str = "127.0.0.1") -> None:
    """Open so many connections, each with one of OPENINGS, and hang up."""
    for number in range(times):
        with suppress(OSError), socket.create_connection((host, port), 5) as connection:
            connection.sendall(OPENINGS[number % len(OPENINGS)])


def gets_through(port: int, kind: int, key: ClusterKey | None, host: str = "127.0.0.1") -> bool:
    """Whether a ZMQ socket of this kind gets to the point where messages pass."""
    with zmq.Context() as context, context.socket(kind) as asker:
        asker.linger = 0
        as_client(asker, key)
        monitor = asker.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | _ENDED)
        try:
            asker.connect(f"tcp://{host}:{port}")
            assert monitor.poll(_DEADLINE_MS), "the handshake neither succeeds nor fails"
            event: Any = recv_monitor_message(monitor)["event"]
            return bool(event == zmq.EVENT_HANDSHAKE_SUCCEEDED)
        finally:
            asker.disable_monitor()
            monitor.close()


def send(
    port: int, kind: int, messages: Sequence[list[bytes]], key: ClusterKey | None = None
) -> None:
    """Send all that fits into the queues of a ZMQ socket, and hang up once it has gone."""
    with zmq.Context() as context, context.socket(kind) as sender:
        sender.linger = 1000
        sender.sndtimeo = 1000
        as_client(sender, key)
        sender.connect(f"tcp://127.0.0.1:{port}")
        for message in messages:
            with suppress(zmq.ZMQError):
                sender.send_multipart(message)


def http_status(port: int, method: str, path: str, host: str = "127.0.0.1") -> int | None:
    """How a port answers a request without a key; None where it speaks no HTTP."""
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request(method, path, body=b"{}" if method in ("POST", "PUT") else None)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
