"""Sending messages to other workers without ever waiting for one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

import zmq

from ps_sglang.engine.transfer.mailbox import Mailbox

logger = logging.getLogger(__name__)

_IDLE_S: Final = 60.0
_MOST: Final = 256
"""Endpoints at a time: whoever reaches this process's port can name more than there are files."""


class Outbox:
    """A PUSH socket per endpoint, beside a mailbox from which what is urgent is posted.

    What a full queue cannot take is dropped, and the protocol asks again.
    """

    def __init__(self, context: zmq.Context[Any], mailbox: Mailbox | None = None) -> None:
        """Nothing is connected yet; `context` and `mailbox` stay the caller's.

        The sockets of `context` are those of a client, see `wires.as_client`.
        """
        self._context = context
        self._mailbox = mailbox
        self._lock = threading.Lock()
        self._sockets: dict[str, tuple[zmq.Socket[Any], float]] = {}

    def send(self, address: str, frames: Sequence[Any]) -> None:
        """Queue a message, from any thread. Pages are not copied: leave them as they are.

        `address` is `<zmq endpoint>`, or `<zmq endpoint>#<mailbox>` for a message of one frame that
        should go to that mailbox, if it can.
        """
        endpoint, _, mailbox = address.partition("#")
        if mailbox and self._mailbox is not None and self._mailbox.post(mailbox, frames[0]):
            return
        with self._lock:
            try:
                entry = self._sockets.pop(endpoint, None)
                socket = self._connect(endpoint) if entry is None else entry[0]
                self._sockets[endpoint] = (socket, time.monotonic())  # the last: used last
                if len(frames) == 1:
                    socket.send(frames[0], zmq.NOBLOCK)
                else:
                    socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
            except zmq.Again:
                logger.debug("Dropped a message to %s: its queue is full", endpoint)
            except zmq.ZMQError as error:  # it is no endpoint
                logger.debug("Dropped a message to %r: %s", endpoint, error)

    def _connect(self, endpoint: str) -> zmq.Socket[Any]:
        socket: zmq.Socket[Any] = self._context.socket(zmq.PUSH)
        try:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.IPV6, "[" in endpoint)
            socket.connect(endpoint)
        except zmq.ZMQError:
            socket.close()
            raise
        while len(self._sockets) >= _MOST:  # the one used longest ago goes
            self._sockets.pop(next(iter(self._sockets)))[0].close()
        return socket

    def close_idle(self) -> None:
        """Hang up on endpoints that nothing was sent to for a minute."""
        with self._lock:
            limit = time.monotonic() - _IDLE_S
            for endpoint, (socket, used) in list(self._sockets.items()):
                if used < limit:
                    socket.close()
                    del self._sockets[endpoint]

    def close(self) -> None:
        """Hang up on everyone; what is still queued is dropped."""
        with self._lock:
            for socket, _ in self._sockets.values():
                socket.close()
            self._sockets.clear()
