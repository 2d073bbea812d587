"""Bytes that mean nothing, to every port on which something of the cluster answers."""

from __future__ import annotations

import asyncio
import random
import struct
from typing import Final

import zmq
import zmq.asyncio

from benchmarks.faults.scene import Fault, Scene

_CONNECTIONS: Final = 12
"""To each port, of each kind."""
_MESSAGES: Final = 100
_SPEAKS_S: Final = 3.0
_HELD_S: Final = 3.0
_GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)


def _random(source: random.Random) -> bytes:
    return source.randbytes(source.randint(1, 4096))


def _http(source: random.Random) -> bytes:
    return b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{" + _random(source)


def _half_head(source: random.Random) -> bytes:
    return b"GET /" + source.randbytes(4).hex().encode()


def _frames(source: random.Random) -> bytes:
    """A ZMTP greeting, and frames that say they are longer than they are."""
    return _GREETING + b"\x02" + struct.pack(">Q", source.getrandbits(40)) + _random(source)


def _nothing(source: random.Random) -> bytes:
    return b""


_BYTES: Final = (_random, _http, _half_head, _frames, _nothing)
_SOCKETS: Final = (zmq.DEALER, zmq.PUSH, zmq.REQ)


async def _speaks(port: int) -> bool:
    """Whether a listener says anything to who connects and asks."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(_SPEAKS_S):
            return bool(await reader.read(1))
    except (TimeoutError, OSError):
        return False
    finally:
        writer.transport.abort()


class Garbage(Fault):
    """Connections with garbage, which are held for a while, and ZMQ messages.

    Ports that say nothing are PyTorch's, where ranks of one worker meet (gloo). It keeps every
    connection there until the worker ends, so they get no more than one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._held: list[asyncio.StreamWriter] = []
        self._context = zmq.Context()

    async def inject(self, scene: Scene) -> None:
        every = scene.system.ports()
        spoke = await asyncio.gather(*map(_speaks, every))
        ports = [port for port, speaks in zip(every, spoke, strict=True) if speaks]
        self.figures |= {"ports": len(ports), "silent_ports": len(every) - len(ports)}
        for port in ports:
            for make in _BYTES:
                for _ in range(_CONNECTIONS):
                    await self._connect(port, make(scene.source))
            await asyncio.to_thread(self._messages, port, random.Random(scene.source.random()))
        self.figures["connections"] = len(self._held)
        await asyncio.sleep(_HELD_S)

    async def heal(self, scene: Scene) -> None:
        for writer in self._held:
            writer.transport.abort()
        self._context.destroy(linger=0)

    async def _connect(self, port: int, content: bytes) -> None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return
        writer.write(content)
        self._held.append(writer)

    def _messages(self, port: int, source: random.Random) -> None:
        for kind in _SOCKETS:
            with self._context.socket(kind) as one:
                one.setsockopt(zmq.LINGER, 200)
                one.setsockopt(zmq.SNDTIMEO, 50)
                one.connect(f"tcp://127.0.0.1:{port}")
                for _ in range(_MESSAGES if kind != zmq.REQ else 1):
                    parts = [source.randbytes(source.randint(0, 200)) for _ in range(3)]
                    try:
                        one.send_multipart(parts)
                    except zmq.Again:  # it speaks no ZMQ, so nothing is taken
                        break
