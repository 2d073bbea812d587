"""A lean HTTP/1.1 server for the stand-in engines: what they cost is not what is measured.

Bodies need a Content-Length (all clients here send one). A request whose client hangs up is
cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, cast

from ps_sglang.worker_info import HEADER

_HEAD_END: Final = b"\r\n\r\n"
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
)
_REASONS: Final = {200: b"OK", 400: b"Bad Request", 404: b"Not Found", 411: b"Length Required"}

Handler = Callable[["Exchange"], Awaitable[None]]


class Exchange:
    """One request and the way to answer it: `answer`, or `stream`, `write`... and `end`."""

    __slots__ = ("_head_end", "_transport", "body", "method", "path")

    def __init__(
        self,
        method: str,
        path: str,
        body: bytes,
        transport: asyncio.WriteTransport,
        head_end: bytes,
    ):
        self.method, self.path, self.body = method, path, body
        self._transport = transport
        self._head_end = head_end

    def answer(self, content: bytes, status: int = 200, kind: bytes = b"application/json") -> None:
        """Send a whole answer."""
        self._transport.write(
            b"HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n%s%s"
            % (status, _REASONS[status], kind, len(content), self._head_end, content)
        )

    def stream(self, first: bytes) -> None:
        """Begin an event stream with its first bytes."""
        self._transport.write(_STREAM_HEAD + self._head_end + (_chunk(first) if first else b""))

    def write(self, content: bytes) -> None:
        """Send more of the stream."""
        self._transport.write(_chunk(content))

    def end(self, last: bytes) -> None:
        """Send the stream's last bytes and end it."""
        self._transport.write(_chunk(last) + b"0\r\n\r\n")


def _chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


class HttpProtocol(asyncio.Protocol):
    """One client connection; requests on it are answered in turn."""

    def __init__(self, handler: Handler, incarnation: str) -> None:
        """Every answer names `incarnation`, as a worker's does."""
        self._handler = handler
        self._head_end = f"{HEADER}: {incarnation}\r\n\r\n".encode()
        self._buffer = bytearray()
        self._running: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._running is not None:
            self._running.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._next()

    def _next(self) -> None:
        if self._running is not None or self._transport is None:
            return
        end = self._buffer.find(_HEAD_END)
        if end < 0:
            return
        head = bytes(self._buffer[:end])
        lines = head.split(b"\r\n")
        method, target, version = (*lines[0].decode("latin-1").split(" ", 2), "", "")[:3]
        if version not in ("HTTP/1.1", "HTTP/1.0"):  # sglang-router first tries gRPC
            self._transport.close()
            return
        length, close = 0, False
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            match name.lower():
                case b"content-length":
                    length = int(value)
                case b"connection":
                    close = value.strip().lower() == b"close"
                case b"transfer-encoding":
                    Exchange(method, target, b"", self._transport, self._head_end).answer(
                        b"{}", 411
                    )
                    self._transport.close()
                    return
        start = end + len(_HEAD_END)
        if len(self._buffer) < start + length:
            return
        body = bytes(self._buffer[start : start + length])
        del self._buffer[: start + length]
        exchange = Exchange(method, target.partition("?")[0], body, self._transport, self._head_end)
        self._running = asyncio.ensure_future(self._run(exchange, close))

    async def _run(self, exchange: Exchange, close: bool) -> None:
        await self._handler(exchange)
        self._running = None
        assert self._transport is not None
        if close:
            self._transport.close()
        elif self._buffer:
            self._next()
