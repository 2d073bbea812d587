"""The HTTP/1.1 client for workers: kept connections, one write per request, no tasks of its own.

A kept connection may be closed by the worker just when a request is sent on it. Two rules make
that invisible: a connection idle for longer than KEEP_SECONDS is not used again, which is well
below the time after which SGLang's server closes one; and a request on a used connection that is
closed before the first byte of its answer is sent once more, on a new connection. A worker that
died refuses that one: it died with the first copy, and `Disconnected` says so. One that had taken
the first copy and lives gets a second: `WorkerResponse.was_resent` tells.

In a cluster with a key, each new connection is first asked to show that the process at its other
end has it, and is the one that the request is for. So a prompt reaches no other process, whoever
takes a dead worker's port.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from ps_sglang.cluster_key import CHALLENGE_HEADER, PROOF_PATH, ClusterKey, new_challenge
from ps_sglang.gateway.dispatch.worker_connection import (
    Connection,
    ConnectionCount,
    WorkerResponse,
)
from ps_sglang.gateway.errors import Disconnected
from ps_sglang.worker_info import HEADER

CONNECT_SECONDS = 5.0
PROOF_SECONDS = 15.0  # its server may be busy, which connecting does not show
_UNPROVEN = "what answers at its address does not show that it is the worker"
KEEP_SECONDS = 2.0  # uvicorn, SGLang's server, closes an idle connection after 5


class WorkerClient:
    """Sends requests to any worker. Errors are OSError (Disconnected is one) or TimeoutError."""

    def __init__(self, key: ClusterKey | None = None) -> None:
        self._key = key
        self.is_crowded: Callable[[], bool] = lambda: False
        """Whether an idle connection must make room for a new one."""
        self._count = ConnectionCount()
        self._idle: dict[_Origin, deque[Connection]] = {}
        self._origins: dict[str, _Origin] = {}

    async def post(
        self, url: str, path: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> WorkerResponse:
        """Send JSON; returns when the head of the answer is there. The response must be closed.

        `headers` name the process that it is for, by HEADER.
        """
        origin = self._origin(url)
        lines = [
            f"POST {origin.path}{path} HTTP/1.1\r\nHost: {origin.authority}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        ]
        incarnation = (headers or {}).get(HEADER)
        lines += [f"{name}: {value}\r\n" for name, value in (headers or {}).items()]
        head = "".join(lines).encode("latin-1") + b"\r\n"
        if (connection := self._kept(origin)) is not None:
            try:
                return await connection.exchange(head, body)
            except Disconnected as lost:
                if connection.answered:
                    raise
                connection = await self._connect_again(origin, incarnation, lost)
            response = await connection.exchange(head, body)
            response.was_resent = True
            return response
        connection = await self._connect(origin, incarnation)
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

    def _kept(self, origin: _Origin) -> Connection | None:
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

    async def _connect_again(
        self, origin: _Origin, incarnation: str | None, lost: Disconnected
    ) -> Connection:
        """Connect after a request was lost; `lost` is raised if the worker is not there."""
        try:
            return await self._connect(origin, incarnation)
        except (ConnectionRefusedError, Disconnected) as refused:
            raise Disconnected(f"{lost}; {refused}", sent=lost.sent) from refused

    async def _connect(self, origin: _Origin, incarnation: str | None) -> Connection:
        if self.is_crowded():
            self.close()
        idle = self._idle.setdefault(origin, deque())
        loop = asyncio.get_running_loop()
        self._count.opened += 1
        self._count.busy += 1
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await loop.create_connection(
                    lambda: Connection(idle, self._count),
                    origin.host,
                    origin.port,
                    ssl=origin.tls or None,
                )
        finally:
            # One that was made counts for itself by now.
            self._count.opened -= 1
            self._count.busy -= 1
        if self._key is not None:
            await self._prove(connection, origin, incarnation, self._key)
        return connection

    async def _prove(
        self, connection: Connection, origin: _Origin, incarnation: str | None, key: ClusterKey
    ) -> None:
        """Have the process at the other end show its key, or raise Disconnected."""
        challenge = new_challenge()
        head = (
            f"GET {origin.path}{PROOF_PATH} HTTP/1.1\r\nHost: {origin.authority}\r\n"
            f"{CHALLENGE_HEADER}: {challenge}\r\n\r\n"
        )
        # Nobody else may take it before that.
        idle, connection.idle = connection.idle, deque(maxlen=1)
        try:
            async with asyncio.timeout(PROOF_SECONDS):
                response = await connection.exchange(head.encode("latin-1"), b"")
                await response.read()
            if connection.is_closed or not key.is_proof(response.proof, challenge, incarnation):
                raise Disconnected(_UNPROVEN, sent=False)
        except BaseException as error:
            connection.abort()
            if isinstance(error, Disconnected):
                raise Disconnected(str(error), sent=False) from error
            raise
        connection.idle = idle


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
