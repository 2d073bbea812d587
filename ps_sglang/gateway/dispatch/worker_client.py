"""The HTTP/1.1 client for workers: kept connections, one write per request, no tasks of its own.

A kept connection may be closed by the worker just when a request is sent on it. Two rules make
that invisible: a connection idle for longer than KEEP_SECONDS is not used again, which is well
below the time after which SGLang's server closes one; and a request on a used connection that is
closed before the first byte of its answer is sent once more, on a new connection. A worker that
died refuses that one: it died with the first copy, and `Disconnected` says so. One that had taken
the first copy and lives gets a second: `WorkerResponse.was_resent` tells.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self, cast
from urllib.parse import urlsplit

import httptools

from ps_sglang.worker_info import HEADER

CONNECT_SECONDS = 5.0
KEEP_SECONDS = 2.0  # uvicorn, SGLang's server, closes an idle connection after 5
# What a stream may have unread before its worker must wait.
UNREAD_BYTES = 256 * 1024
_INCARNATION = HEADER.encode()


class Disconnected(ConnectionError):
    """The worker closed the connection before its answer was complete.

    `sent`: after a request was sent on it, which the worker may have begun to work on.
    """

    def __init__(self, reason: str, *, sent: bool = True) -> None:
        super().__init__(reason)
        self.sent = sent


class WorkerClient:
    """Sends requests to any worker. Errors are OSError (Disconnected is one) or TimeoutError."""

    def __init__(self) -> None:
        self.is_crowded: Callable[[], bool] = lambda: False
        """Whether an idle connection must make room for a new one."""
        self._count = _Count()
        self._idle: dict[_Origin, deque[_Connection]] = {}
        self._origins: dict[str, _Origin] = {}

    async def post(
        self, url: str, path: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> WorkerResponse:
        """Send JSON; returns when the head of the answer is there. The response must be closed."""
        origin = self._origin(url)
        lines = [
            f"POST {origin.path}{path} HTTP/1.1\r\nHost: {origin.authority}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        ]
        lines += [f"{name}: {value}\r\n" for name, value in (headers or {}).items()]
        head = "".join(lines).encode("latin-1") + b"\r\n"
        if (connection := self._kept(origin)) is not None:
            try:
                return await connection.exchange(head, body)
            except Disconnected as lost:
                if connection.answered:
                    raise
                connection = await self._connect_again(origin, lost)
            response = await connection.exchange(head, body)
            response.was_resent = True
            return response
        connection = await self._connect(origin)
        return await connection.exchange(head, body)

    @property
    def opened(self) -> int:
        """Connections that are open, or being opened."""
        return self._count.opened

    @property
    def busy(self) -> int:
        """Those of them that are not idle."""
        return self._count.busy

    def close(self) -> None:
        """Close the idle connections."""
        for connections in self._idle.values():
            while connections:
                connections.pop().abort()

    def _origin(self, url: str) -> _Origin:
        origin = self._origins.get(url)
        if origin is None:
            origin = self._origins[url] = _Origin.of(url)
        return origin

    def _kept(self, origin: _Origin) -> _Connection | None:
        connections = self._idle.get(origin)
        if not connections:
            return None
        oldest = time.monotonic() - KEEP_SECONDS
        while connections and connections[0].idle_since < oldest:
            connections.popleft().abort()
        while connections:
            connection = connections.pop()  # the one that was used last
            if not connection.is_closed:
                return connection
        return None

    async def _connect_again(self, origin: _Origin, lost: Disconnected) -> _Connection:
        """Connect after a request was lost; `lost` is raised if the worker refuses."""
        try:
            return await self._connect(origin)
        except ConnectionRefusedError as refused:
            raise Disconnected(f"{lost}; {refused}", sent=lost.sent) from refused

    async def _connect(self, origin: _Origin) -> _Connection:
        if self.is_crowded():
            self.close()
        idle = self._idle.setdefault(origin, deque())
        loop = asyncio.get_running_loop()
        self._count.opened += 1
        self._count.busy += 1
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await loop.create_connection(
                    lambda: _Connection(idle, self._count),
                    origin.host,
                    origin.port,
                    ssl=origin.tls or None,
                )
        finally:
            # One that was made counts for itself by now.
            self._count.opened -= 1
            self._count.busy -= 1
        return connection


@dataclass
class _Count:
    """Open connections of a client, and those that are not idle."""

    opened: int = 0
    busy: int = 0


@dataclass(frozen=True)
class _Origin:
    """A worker's URL in parts."""

    host: str
    port: int
    authority: str
    path: str
    tls: bool

    @classmethod
    def of(cls, url: str) -> Self:
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        port = parts.port or (443 if tls else 80)
        return cls(parts.hostname or "", port, parts.netloc, parts.path.rstrip("/"), tls)


class WorkerResponse:
    """An answer whose head has come. Read it with `read`, or piece by piece with `piece`.

    `close`, or leaving the `with` block, breaks the connection off unless the answer is complete.
    """

    def __init__(self, connection: _Connection, status: int, incarnation: str | None) -> None:
        self.status = status
        self.incarnation = incarnation
        """The process that answers, if it says so."""
        self.was_resent = False
        self._connection: _Connection | None = connection
        self._pieces: list[bytes] = []
        self._unread = 0
        self._complete = False
        self._failure: Disconnected | None = None
        self._waiter: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def read(self) -> bytes:
        """All of the body that has not been read yet."""
        while not self._complete:
            if self._unread > UNREAD_BYTES and self._connection is not None:
                self._connection.resume()
            await self._wait()
        return self._take()

    async def piece(self) -> bytes:
        """What of the body has come since; waits for the first of it. Empty at the body's end."""
        while not self._pieces:
            if self._complete:
                return b""
            await self._wait()
        return self._take()

    def close(self) -> None:
        """Be done with it. May be called more than once."""
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    def _take(self) -> bytes:
        pieces = self._pieces
        taken = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._unread = 0
        if self._connection is not None:
            self._connection.resume()
        return taken

    async def _wait(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # What the connection tells.

    def _received(self, data: bytes) -> bool:
        """Returns whether that is enough for now."""
        self._pieces.append(data)
        self._unread += len(data)
        self._wake()
        return self._unread > UNREAD_BYTES

    def _ended(self) -> None:
        self._complete = True
        self._connection = None
        self._wake()

    def _failed(self, error: Disconnected) -> None:
        self._failure = error
        self._connection = None
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Connection(asyncio.Protocol):
    """One connection; serves one request at a time and joins `idle` when the answer is complete."""

    def __init__(self, idle: deque[_Connection], count: _Count) -> None:
        self._count = count
        self._is_busy = False
        self.idle_since = 0.0
        self.answered = False
        self.is_closed = False
        self._idle = idle
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._head: asyncio.Future[WorkerResponse] | None = None
        self._response: WorkerResponse | None = None
        self._paused = False
        self._reusable = True
        self._framed = False  # the answer says where it ends; otherwise the connection's end does
        self._incarnation: str | None = None  # the process that the answer names

    async def exchange(self, head: bytes, body: bytes) -> WorkerResponse:
        """Send a request; returns when the head of the answer is there."""
        if self.is_closed or self._transport is None:
            raise Disconnected("the worker closed the connection", sent=False)
        self._busy(True)
        self.answered = False
        answer: asyncio.Future[WorkerResponse] = asyncio.get_running_loop().create_future()
        self._head = answer
        self._transport.writelines((head, body))
        try:
            return await answer
        except asyncio.CancelledError:
            # The head may have come meanwhile, and another request may even use the connection.
            if not answer.done() or answer.cancelled():
                self.abort()
            else:
                answer.result().close()
            raise

    def abort(self) -> None:
        """Break the connection off."""
        self.is_closed = True
        if self._transport is not None:
            self._transport.abort()

    def resume(self) -> None:
        """The response wants more."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses.
        self._transport = cast(asyncio.Transport, transport)
        self._count.opened += 1
        self._busy(True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._count.opened -= 1
        self._busy(False)
        self.is_closed = True
        self._transport = None
        self._fail(str(exc) if exc else "the worker closed the connection")

    def eof_received(self) -> bool | None:
        if self._response is not None and not self._framed:
            self.on_message_complete()
        return None

    def data_received(self, data: bytes) -> None:
        self.answered = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"it does not speak HTTP/1.1: {error}")
            self.abort()

    # What the parser tells.

    def on_message_begin(self) -> None:
        self._framed = False
        self._incarnation = None

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._framed = True
        elif name == _INCARNATION:
            self._incarnation = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        head, self._head = self._head, None
        if head is None or head.done():  # an answer to nothing, or nobody waits any more
            self.abort()
            return
        self._reusable = self._parser.should_keep_alive()
        self._response = WorkerResponse(self, self._parser.get_status_code(), self._incarnation)
        head.set_result(self._response)

    def on_body(self, body: bytes) -> None:
        if self._response is not None and self._response._received(body) and not self._paused:
            assert self._transport is not None
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        response, self._response = self._response, None
        if response is None:
            return
        if self._reusable and not self.is_closed:
            self.resume()
            self.idle_since = time.monotonic()
            self._busy(False)
            self._idle.append(self)
        else:
            self.abort()
        response._ended()

    def _busy(self, is_busy: bool) -> None:
        self._count.busy += is_busy - self._is_busy
        self._is_busy = is_busy

    def _fail(self, reason: str) -> None:
        error = Disconnected(reason)
        head, self._head = self._head, None
        if head is not None and not head.done():
            head.set_exception(error)
        if self._response is not None:
            self._response._failed(error)
            self._response = None
