"""Requests to a worker's event stream, and their answers."""

from __future__ import annotations

import asyncio

import msgspec
import zmq
import zmq.asyncio

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.events.messages import (
    MOST_BYTES,
    NOT_UNDERSTOOD,
    Replayed,
    Reply,
    Request,
    RequestRefused,
)
from ps_sglang.wires import as_client


class EventStreamError(Exception):
    """A worker did not answer as an event stream should; the message says how."""


class Control:
    """Requests to one worker, one at a time; a late answer is never taken for another's."""

    def __init__(self, address: str, seconds: float, key: ClusterKey | None = None) -> None:
        """Ask at `address`, and wait at most `seconds` for an answer; `key` is the cluster's."""
        self._address = address
        self._seconds = seconds
        self._key = key
        self._socket: zmq.asyncio.Socket | None = None
        self._lock = asyncio.Lock()
        self._replies = msgspec.msgpack.Decoder(Reply)

    async def ask(self, request: Request) -> tuple[Reply, list[bytes]]:
        """The answer, and the frames behind it; raises EventStreamError."""
        async with self._lock:
            try:
                async with asyncio.timeout(self._seconds):
                    frames = await self._exchange(msgspec.msgpack.encode(request))
            except BaseException as error:
                self.close()
                if isinstance(error, TimeoutError):
                    raise EventStreamError(
                        f"it has not answered for {self._seconds:g} s"
                    ) from error
                if isinstance(error, zmq.ZMQError):
                    raise EventStreamError(
                        f"it cannot be asked at {self._address}: {error}"
                    ) from error
                raise
        try:
            empty, content, *more = frames
            reply = self._replies.decode(content)
            if empty or (isinstance(reply, Replayed) and reply.count != len(more)):
                raise ValueError(f"{len(frames)} frames do not fit {reply!r}")
        except NOT_UNDERSTOOD as error:
            raise EventStreamError(f"its answer is not understood: {error}") from error
        if isinstance(reply, RequestRefused):
            raise EventStreamError(f"it refused {request!r}: {reply.reason}")
        return reply, more

    async def _exchange(self, content: bytes) -> list[bytes]:
        if self._socket is None:
            self._socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
            self._socket.linger = 0
            self._socket.maxmsgsize = MOST_BYTES
            as_client(self._socket, self._key)
            self._socket.connect(self._address)
        await self._socket.send_multipart([b"", content])
        return list(await self._socket.recv_multipart())

    def close(self) -> None:
        """Forget the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
