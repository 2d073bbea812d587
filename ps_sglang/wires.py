"""CURVE on the ZMQ sockets between the processes of a cluster, with keys made from its secret.

All sockets that listen have one key pair. Its public half is as secret as the other: only who has
the cluster's secret can compute it, and a CURVE client cannot say its first word without it. So
the listening side keeps no list of clients, and has no thread that looks them up. What goes over a
connection is encrypted with keys of that connection alone.

Without a cluster's key sockets are as open as ZMQ makes them, for workers started by hand.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.errors import UsageError

log = logging.getLogger("ps_sglang.wires")

_ALIVE: Final = {
    # A host that has gone, or a cut link: the connection ends after 10 s, and is made anew.
    zmq.TCP_MAXRT: 10_000,
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 5,
    zmq.TCP_KEEPALIVE_INTVL: 2,
    zmq.TCP_KEEPALIVE_CNT: 3,
}
_RETRYING: Final = {zmq.CONNECT_TIMEOUT: 2_000, zmq.RECONNECT_IVL_MAX: 2_000}
_HANDSHAKES: Final = zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
_TELL_S: Final = 1.0

Sockets = zmq.Socket[Any] | zmq.Context[Any]
"""A socket, or a context for all the sockets that it makes from now on."""


class Refusal(StrEnum):
    """Why a listening socket turned something away."""

    UNAUTHENTICATED = "unauthenticated"
    """A connection, or a request, that did not show the cluster's key."""
    MALFORMED = "malformed"
    """A message that is none of the protocol's, from somebody who has the key."""


Count = Callable[[str, Refusal, int], None]
"""Takes the name of a listening socket, why, and how many."""


def count_nothing(_socket: str, _reason: Refusal, _amount: int) -> None:
    """Where nobody counts."""


def as_listener(sockets: Sockets, key: ClusterKey | None) -> None:
    """Before they listen: only who has the key gets through.

    Raises UsageError where libzmq has no CURVE.
    """
    _set(sockets, _ALIVE)
    if key is not None:
        secret, _ = _listeners_pair(key)
        _set(sockets, {zmq.CURVE_SERVER: 1, zmq.CURVE_SECRETKEY: secret})


def as_client(sockets: Sockets, key: ClusterKey | None) -> None:
    """Before they connect: they get through to the listeners that have the key, and to no other.

    Raises UsageError where libzmq has no CURVE.
    """
    _set(sockets, _ALIVE | _RETRYING)
    if key is not None:
        _, listener = _listeners_pair(key)
        public, secret = zmq.curve_keypair()
        _set(
            sockets,
            {
                zmq.CURVE_SERVER: 0,
                zmq.CURVE_SERVERKEY: listener,
                zmq.CURVE_PUBLICKEY: public,
                zmq.CURVE_SECRETKEY: secret,
            },
        )


def is_guarded(socket: zmq.Socket[Any]) -> bool:
    """Whether the socket asks for a key: a context's options are not seen to fail."""
    return socket.getsockopt(zmq.MECHANISM) == zmq.CURVE


def _set(sockets: Sockets, options: dict[Any, Any]) -> None:
    for option, value in options.items():
        sockets.setsockopt(option, value)


def _listeners_pair(key: ClusterKey) -> tuple[bytes, bytes]:
    """The secret and the public key of all listening sockets, as ZMQ writes them."""
    if not zmq.has("curve"):
        raise UsageError(
            "this libzmq has no CURVE, which guards the sockets between workers and gateway: "
            "install pyzmq as its own wheel (pip install --force-reinstall pyzmq)"
        )
    secret = z85.encode(key.derive("zmq listener"))
    return secret, zmq.curve_public(secret)


class HandshakeMonitor:
    """Counts connections to a listening socket that ended before they had shown the key."""

    def __init__(self, socket: zmq.Socket[Any]) -> None:
        """Watch `socket` from now on."""
        address = f"inproc://handshakes-{secrets.token_hex(8)}"
        socket.monitor(address, _HANDSHAKES)
        self.socket: zmq.Socket[Any] = socket.context.socket(zmq.PAIR)
        """Readable when there is something to `take`."""
        self.socket.linger = 0
        # With a bound, a queue that nobody reads would hold up libzmq's own thread.
        self.socket.rcvhwm = 0
        self.socket.connect(address)
        self._waiting: dict[int, None] = {}

    def take(self) -> int:
        """How many there were since it was asked last; never waits. For one thread."""
        refused = 0
        while True:
            try:
                event = recv_monitor_message(self.socket, zmq.NOBLOCK)
            except zmq.Again:
                return refused
            connection = event["value"]
            if event["event"] == zmq.EVENT_ACCEPTED:
                self._waiting[connection] = None
            elif event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                # It does not say which. Taking the oldest, the sum is right in the end.
                self._waiting.pop(next(iter(self._waiting), -1), None)
            elif self._waiting.pop(connection, -1) is None:
                refused += 1


class Refusals:
    """What one listening socket turned away: counted, and told in the log once a second."""

    def __init__(self, socket: str, count: Count = count_nothing) -> None:
        """`socket` is its name in metrics and logs; `count` hears of each reason at once."""
        self._socket = socket
        self._count = count
        self._tell_at = 0.0
        self._untold = 0
        for reason in Refusal:
            count(socket, reason, 0)  # a rate needs its first value

    def add(self, reason: Refusal, why: str, amount: int = 1) -> None:
        """`amount` more were turned away, the last one because of `why`."""
        if amount == 0:
            return
        self._count(self._socket, reason, amount)
        self._untold += amount
        if (now := time.monotonic()) >= self._tell_at:
            log.warning("%s socket: turned away %d, %s", self._socket, self._untold, why)
            self._tell_at, self._untold = now + _TELL_S, 0

    def handshakes(self, monitor: HandshakeMonitor) -> None:
        """Add the connections that a monitor has seen end."""
        self.add(Refusal.UNAUTHENTICATED, "that did not show the cluster's key", monitor.take())
