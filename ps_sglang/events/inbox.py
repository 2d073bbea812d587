"""A subscription read by the event loop itself.

`zmq.asyncio` makes a poller, futures and a timer for every message, which costs more than most
messages of an event stream take to be decoded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

import zmq

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.events.messages import MOST_BYTES
from ps_sglang.wires import as_client

_READABLE: Final = int(zmq.POLLIN)  # zmq's own flags take microseconds to be combined


class Inbox:
    """What is published at an address, for one task of the running event loop."""

    def __init__(
        self, address: str, topics: Iterable[bytes], key: ClusterKey | None = None
    ) -> None:
        """Subscribe with the cluster's key; raises zmq.ZMQError for an invalid address."""
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[bool] | None = None
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MOST_BYTES)
        try:
            as_client(self._socket, key)
            for topic in topics:
                self._socket.subscribe(topic)
            self._socket.connect(address)
        except BaseException:
            self._socket.close()
            raise
        self._file = int(self._socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._file, self._signalled)

    async def wait(self, seconds: float) -> bool:
        """Wait for a message; returns False after so many seconds without one."""
        if self._has_message():
            return True
        self._waiter = self._loop.create_future()
        timer = self._loop.call_later(seconds, self._wake, False)
        try:
            return await self._waiter
        finally:
            self._waiter = None
            timer.cancel()

    def take(self) -> list[bytes] | None:
        """The frames of the next message, None if there is none yet."""
        return self._socket.recv_multipart(zmq.DONTWAIT) if self._has_message() else None

    def close(self) -> None:
        """End the subscription."""
        self._loop.remove_reader(self._file)
        self._socket.close()

    def _signalled(self) -> None:
        # Asking also takes the signal away; otherwise the loop would call this again and again.
        if self._has_message():
            self._wake(True)

    def _has_message(self) -> bool:
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & _READABLE)

    def _wake(self, outcome: bool) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(outcome)
