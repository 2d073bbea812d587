"""Clients that hang up, do not read, or give two requests one id."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from benchmarks.faults.client import Ending, request
from benchmarks.faults.models import Turn
from benchmarks.faults.scene import BURST, Fault, Scene

_GONE: Final = 200
_GONE_AFTER_S: Final = (0.0, 1.5)
_SLOW: Final = 12
_SLOW_S: Final = 10.0
_SMALL_BUFFER: Final = 4096
_SAME: Final = 12


def head_and_body(url: str, turn: Turn, salt: str, *, stream: bool) -> tuple[str, int, bytes]:
    """Host, port and the bytes of a whole request."""
    address = urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    body = json.dumps(request(turn, len(turn.answer), stream=stream, salt=salt)).encode()
    head = (
        f"POST /models/{turn.decoder}/generate HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return address.hostname, address.port, head.encode() + body


class Gone(Fault):
    """200 clients at once that hang up, each at another moment: within the head, within the body,
    while their prompt waits, is computed or moves, and within a stream."""

    async def inject(self, scene: Scene) -> None:
        turns = (*scene.script.long, *scene.script.talk)
        await asyncio.gather(
            *(self._hang_up(scene, turns[number % len(turns)]) for number in range(_GONE))
        )

    async def _hang_up(self, scene: Scene, turn: Turn) -> None:
        source = scene.source
        stream = source.random() < 0.5
        host, port, content = head_and_body(scene.client.url, turn, scene.salt(), stream=stream)
        cut = source.randrange(len(content)) if source.random() < 0.2 else len(content)
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError:
            return
        writer.write(content[:cut])
        await asyncio.sleep(source.uniform(*_GONE_AFTER_S))
        writer.transport.abort()


@dataclass
class _Slow:
    """A client that does not read yet."""

    turn: Turn
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class SlowReaders(Fault):
    """Streams that nobody reads for a while. Then half of them are read to their end, which must be
    exact, and the others hang up."""

    def __init__(self) -> None:
        super().__init__()
        self._slow: list[_Slow] = []

    async def inject(self, scene: Scene) -> None:
        turns = scene.script.talk
        for number in range(_SLOW):
            self._slow.append(await self._open(scene, turns[number % len(turns)]))
        await asyncio.sleep(_SLOW_S)
        wrong = []
        for slow in self._slow[::2]:
            content = await slow.reader.read()
            events = [line[5:] for line in content.splitlines() if line.startswith(b"data:")]
            if len(events) < 2 or events[-1].strip() != b"[DONE]":
                wrong.append(f"a slow reader's stream ended with {content[-300:]!r}")
            elif tuple(json.loads(events[-2])["output_ids"]) != slow.turn.answer:
                wrong.append(f"a slow reader got other tokens: {events[-2]!r}")
        if wrong:
            raise AssertionError("; ".join(wrong))

    async def heal(self, scene: Scene) -> None:
        for slow in self._slow:
            slow.writer.transport.abort()

    async def _open(self, scene: Scene, turn: Turn) -> _Slow:
        host, port, content = head_and_body(scene.client.url, turn, scene.salt(), stream=True)
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connection, (host, port))
            # The reader itself takes no more than its limit, twice, until it is read.
            reader, writer = await asyncio.open_connection(sock=connection, limit=_SMALL_BUFFER)
        except BaseException:
            connection.close()
            raise
        writer.write(content)
        with suppress(ConnectionError):
            await writer.drain()
        return _Slow(turn, reader, writer)


class SameIds(Fault):
    """A dozen requests with one `rid` at once, and again when they have ended."""

    async def inject(self, scene: Scene) -> None:
        turn = scene.script.conversations[0][-1]
        for _ in range(2):
            tasks = [scene.send(turn, by=BURST, rid="the same") for _ in range(_SAME)]
            outcomes = await asyncio.gather(*tasks)
            if bad := [one for one in outcomes if one.ending is not Ending.EXACT]:
                raise AssertionError(f"{len(bad)} of {_SAME} with one id: {bad[0]}")
