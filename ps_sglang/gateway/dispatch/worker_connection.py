"""One HTTP/1.1 connection to a worker, and the answer that comes over it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Self, cast

import httptools

from ps_sglang.cluster_key import PROOF_HEADER
from ps_sglang.gateway.errors import Disconnected
from ps_sglang.worker_info import HEADER

# What a stream may have unread before its worker must wait.
UNREAD_BYTES = 256 * 1024
_INCARNATION = HEADER.encode()
_PROOF = PROOF_HEADER.encode()


@dataclass
class ConnectionCount:
    """Open connections of a client, and those that are not idle."""

    opened: int = 0
    busy: int = 0


class WorkerResponse:
    """An answer whose head has come. Read it with `read`, or piece by piece with `piece`.

    `close`, or leaving the `with` block, breaks the connection off unless the answer is complete.
    """

    def __init__(self, connection: Connection, status: int, incarnation: str | None) -> None:
        self.status = status
        self.incarnation = incarnation
        """The process that answers, if it says so."""
        self.proof: str | None = None
        """What it answers to a challenge."""
        self.was_resent = False
        self._connection: Connection | None = connection
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


class Connection(asyncio.Protocol):
    """One connection; serves one request at a time and joins `idle` when the answer is complete."""

    def __init__(self, idle: deque[Connection], count: ConnectionCount) -> None:
        self._count = count
        self._is_busy = False
        self.idle_since = 0.0
        self.answered = False
        self.is_closed = False
        self.idle = idle
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._head: asyncio.Future[WorkerResponse] | None = None
        self._response: WorkerResponse | None = None
        self._paused = False
        self._reusable = True
        self._framed = False  # the answer says where it ends; otherwise the connection's end does
        self._incarnation: str | None = None  # the process that the answer names
        self._proof: str | None = None

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
        del self._parser  # it holds this connection: a cycle, which nobody collects for long

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
        self._incarnation = self._proof = None

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._framed = True
        elif name == _INCARNATION:
            self._incarnation = value.decode("latin-1")
        elif name == _PROOF:
            self._proof = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        head, self._head = self._head, None
        if head is None or head.done():  # an answer to nothing, or nobody waits any more
            self.abort()
            return
        self._reusable = self._parser.should_keep_alive()
        self._response = WorkerResponse(self, self._parser.get_status_code(), self._incarnation)
        self._response.proof = self._proof
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
            self.idle.append(self)
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
