"""Accepts clients, as many as there are descriptors for, and ends those that keep one waiting.

A server that accepts until the system refuses has nothing left to say so with. Here a client that
comes when most descriptors are taken still gets its answer, which is 429, and the rest wait in the
kernel's queue for the moment that it takes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final, cast

from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError

from ps_sglang.gateway.dispatch.descriptors import Descriptors
from ps_sglang.gateway.errors import BROKEN_ENCODING, BadRequest, GatewayError

log = logging.getLogger("ps_sglang.gateway")

HEAD_SECONDS: Final = 15.0
"""A client that has begun a request must have sent its head by then."""
BODY_SECONDS: Final = 60.0
"""... and its body, from then on."""
STALL_SECONDS: Final = 6.0
"""... of which something must come in this time."""
READ_SECONDS: Final = 60.0
"""A client that takes nothing of its answer in this time, or twice of it, is not there."""
IDLE_SECONDS: Final = 75.0
"""A kept connection is closed after this time without a request."""
PRESSED_SECONDS: Final = 1.0
"""... and after this one where descriptors are short."""
_BACKLOG: Final = 1024
_AT_ONCE: Final = 64
_PAUSE_SECONDS: Final = 0.05


class HttpListener:
    """Listens for the application of `runner`, which must be set up.

    With `tls` connections are encrypted; it is asked anew for each. `for_admins`: it is the port
    for admins. `is_shared`: other processes of this user listen on the port, too, and the system
    chooses one for each connection.
    """

    def __init__(
        self,
        runner: web.BaseRunner,
        descriptors: Descriptors,
        tls: Callable[[], ssl.SSLContext] | None = None,
        *,
        for_admins: bool = False,
        is_shared: bool = False,
    ) -> None:
        assert runner.server is not None, "the runner is set up first"
        self._server = runner.server
        self._descriptors = descriptors
        self._tls = tls
        self.for_admins = for_admins
        self._is_shared = is_shared
        self._sockets: list[socket.socket] = []
        self._clients: set[_Client] = set()
        self._paused: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._next_look = self._loop.call_later(READ_SECONDS, self._end_stalled)

    async def start(self, host: str, port: int) -> int:
        """Listen, on any free port if `port` is 0; returns the port. Raises OSError."""
        addresses = await self._loop.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        try:
            for family, _, _, _, address in dict.fromkeys(addresses):
                self._sockets.append(_listening(family, address, is_shared=self._is_shared))
        except OSError:
            self._close()
            raise
        self._watch()
        bound: int = self._sockets[0].getsockname()[1]
        return bound

    def stop(self) -> None:
        """Accept nobody any more; those that are connected stay."""
        self._next_look.cancel()
        if self._paused is not None:
            self._paused.cancel()
        else:
            self._ignore()
        self._close()

    def gone(self, client: _Client) -> None:
        """A client's connection is closed."""
        if client in self._clients:
            self._clients.discard(client)
            self._descriptors.clients -= 1
            del _BY_INNER[client.inner]

    def _end_stalled(self) -> None:
        for client in list(self._clients):
            client.end_if_stalled()
        self._next_look = self._loop.call_later(READ_SECONDS, self._end_stalled)

    def _watch(self) -> None:
        self._paused = None
        for one in self._sockets:
            self._loop.add_reader(one, self._accept, one)

    def _ignore(self) -> None:
        for one in self._sockets:
            self._loop.remove_reader(one)

    def _close(self) -> None:
        for one in self._sockets:
            one.close()
        self._sockets.clear()

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            if not self._descriptors.may_accept:
                self._pause()
                return
            try:
                connection, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error("cannot accept a client: %s", error)
                self._pause()
                return
            connection.setblocking(False)
            client = _Client(self._server(), self)
            self._clients.add(client)
            self._descriptors.clients += 1
            client.connecting = self._loop.create_task(self._connect(client, connection))

    async def _connect(self, client: _Client, connection: socket.socket) -> None:
        try:
            if self._tls is None:
                await self._loop.connect_accepted_socket(lambda: client, connection)
            else:
                await self._loop.connect_accepted_socket(
                    lambda: client,
                    connection,
                    ssl=self._tls(),
                    ssl_handshake_timeout=HEAD_SECONDS,
                )
        except OSError as error:
            connection.close()
            self.gone(client)
            log.info("a client was gone at once: %s", error)

    def _pause(self) -> None:
        if self._paused is None:
            self._ignore()
            self._paused = self._loop.call_later(_PAUSE_SECONDS, self._watch)
            idle_since = self._loop.time() - PRESSED_SECONDS
            for client in list(self._clients):
                client.close_if_idle_since(idle_since)


class _Client(asyncio.Protocol):
    """Between a client's connection and aiohttp.

    It ends a head that does not come, and an answer that is not taken.
    """

    def __init__(self, inner: asyncio.Protocol, listener: HttpListener) -> None:
        self.connecting: asyncio.Task[None] | None = None
        self.inner = inner
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._requests = 0  # at work
        self._idle_since = self._loop.time()
        self._late: asyncio.TimerHandle | None = None
        self._is_full = False  # nothing more is written until the client has taken some of it
        self._unread = 0  # bytes that it had not taken when `end_if_stalled` looked
        _BY_INNER[inner] = self

    @property
    def is_for_admins(self) -> bool:
        """Whether it came by the port for admins."""
        return self._listener.for_admins

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are of no class of it
        self.inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._forget_head()
        self._listener.gone(self)
        self.inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._requests and self._late is None:
            self._late = self._loop.call_later(HEAD_SECONDS, self._end)
        self.inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self.inner.eof_received()

    def pause_writing(self) -> None:
        self._is_full = True
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self._is_full, self._unread = False, 0
        self.inner.resume_writing()

    def began(self) -> None:
        """A request's head has come."""
        self._requests += 1
        self._unread = 0
        self._forget_head()

    def ended(self) -> None:
        """A request was answered."""
        self._requests -= 1
        self._idle_since = self._loop.time()

    def close_if_idle_since(self, since: float) -> None:
        """Close it if no request has been at work since then."""
        if not self._requests and self._idle_since < since:
            self._end()

    def end_if_stalled(self) -> None:
        """Break the connection off if the client has taken nothing since the last call.

        Only where nothing more is written can that be told: then what waits can but shrink.
        """
        if self._transport is None or not (self._is_full or not self._requests):
            return
        before, self._unread = self._unread, self._transport.get_write_buffer_size()
        if before and self._unread >= before:
            log.info("a client took nothing of its answer for %g s", READ_SECONDS)
            self._transport.abort()

    def _forget_head(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end(self) -> None:
        if self._transport is not None:
            self._transport.close()


_BY_INNER: dict[asyncio.BaseProtocol, _Client] = {}


def client_of(request: web.Request) -> _Client | None:
    """Who tells of a request's connection, None where another listener has accepted it."""
    return _BY_INNER.get(request.protocol)


async def read_body(request: web.Request) -> None:
    """Have the whole body at hand, for `request.read()`; raises GatewayError if it does not come.

    A client may take its time, but not stop: its connection would be held for ever.
    """
    if not request.body_exists:
        return
    reading = asyncio.ensure_future(request.read())
    loop = asyncio.get_running_loop()
    deadline, seen = loop.time() + BODY_SECONDS, request.content.total_bytes
    try:
        while not reading.done():
            wait = min(STALL_SECONDS, deadline - loop.time())
            await asyncio.wait({reading}, timeout=max(wait, 0))
            so_far = request.content.total_bytes
            if not reading.done() and (so_far == seen or loop.time() >= deadline):
                raise GatewayError(
                    f"The body did not come: after {so_far} bytes nothing more came for "
                    f"{STALL_SECONDS:g} s, or it took more than {BODY_SECONDS:g} s.",
                    status=408,
                    code="request_timeout",
                )
            seen = so_far
        reading.result()
    except web.RequestPayloadError as error:
        request.content.feed_eof()  # aiohttp must not wait for the rest of it
        if isinstance(error.__cause__, ContentEncodingError):
            raise BadRequest(BROKEN_ENCODING) from error
        reason = " ".join(str(error).split()).removeprefix("400, message:").strip()
        raise BadRequest(f"The body cannot be read: {reason.rstrip('.')}.") from error
    finally:
        reading.cancel()


def _listening(family: int, address: tuple[object, ...], *, is_shared: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setblocking(False)
        made.bind(address)
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise OSError(error.errno, f"cannot listen on {address[0]}:{address[1]}: {error}") from None
    return made
