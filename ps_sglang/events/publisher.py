"""The worker's end of the event stream: publishes, replays, and passes requests on.

The constructor takes what SGLang passes to a publisher of KV events, so that the class registers
as one; it needs nothing of SGLang. One thread owns the sockets. `publish` and `record` only put
into a queue, and without a subscriber nothing is even encoded.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec
import zmq

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.events.messages import (
    KV,
    MOST_REQUEST_BYTES,
    NOT_UNDERSTOOD,
    NUMBER_BYTES,
    TIMELINE,
    Expired,
    Pin,
    Position,
    Release,
    Replay,
    Replayed,
    Reply,
    Request,
    RequestRefused,
    Snapshot,
    Span,
)
from ps_sglang.events.messages import (
    topic as topic_of,
)
from ps_sglang.wires import (
    Count,
    HandshakeMonitor,
    Refusal,
    Refusals,
    as_listener,
    count_nothing,
)

log = logging.getLogger(__name__)

Command = Snapshot | Release | Pin
"""Requests that the owner of the tree carries out."""

REPLAY_BYTES: Final = 32 << 20
"""Bytes of past batches kept for replays."""


class WorkerEventPublisher:
    """Publishes a worker's KV events and spans; see ps_sglang.events.messages.

    `endpoint` and `replay_endpoint` are where to listen, for subscribers and for requests
    (`tcp://host:0` takes any free port); `buffer_steps` is how many batches are kept for replays
    at most, `hwm` how many messages may wait for a slow subscriber, `max_queue_size` how many for
    the thread that sends them. What exceeds the last two is dropped, which subscribers see as a
    gap. The others are SGLang's and have no meaning here. Only who has the cluster's `key` is
    heard, if there is one, and `count` takes what was turned away.

    Raises ValueError for a configuration without a meaning, zmq.ZMQError for an address in use.
    """

    def __init__(
        self,
        attn_dp_rank: int = 0,
        endpoint: str = "tcp://127.0.0.1:0",
        replay_endpoint: str | None = "tcp://127.0.0.1:0",
        buffer_steps: int = 10_000,
        hwm: int = 100_000,
        max_queue_size: int = 100_000,
        topic: str = "",
        bind: bool | None = True,
        *,
        key: ClusterKey | None = None,
        count: Count = count_nothing,
    ) -> None:
        if attn_dp_rank:
            raise ValueError("the event stream has one tree per worker: leave out --dp-size")
        if topic or replay_endpoint is None or not bind:
            raise ValueError(
                "publisher ps_sglang listens on `endpoint` and `replay_endpoint` and chooses its "
                'topics itself: set both addresses and "bind": true, and no `topic`'
            )
        self.incarnation: Final = os.urandom(8).hex()
        self._max_queue_size = max_queue_size
        self._next = 0
        self._next_record = 0
        self._queue: deque[tuple[str, int, Any]] = deque()
        self._closing = False
        self._subscriptions: set[bytes] = set()
        self._topics = tuple(topic_of(kind, self.incarnation) for kind in (KV, TIMELINE))
        self._replay_buffer = _ReplayBuffer(buffer_steps, REPLAY_BYTES)
        self._command: Callable[[Command], None] = _no_tree
        self._context = zmq.Context()
        try:
            self._out = self._socket(zmq.XPUB, hwm, key)
            self._router = self._socket(zmq.ROUTER, hwm, key)
            self._turned_away = {
                self._out: (Refusals("events", count), HandshakeMonitor(self._out)),
                self._router: (Refusals("control", count), HandshakeMonitor(self._router)),
            }
            self._out.bind(endpoint)
            self._router.bind(replay_endpoint)
        except zmq.ZMQError:
            self._context.destroy(linger=0)
            raise
        self.endpoint: Final = _address(self._out)
        self.control: Final = _address(self._router)
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="ps-sglang-events", daemon=True)
        self._thread.start()
        atexit.register(self.shutdown)

    def publish(self, batch: Any) -> None:
        """Publish a `KvEventBatch`, or SGLang's own, which is the same on the wire.

        Call it from one thread, and leave the batch alone afterwards.
        """
        self._put(KV, self._next, batch)
        self._next += 1

    def record(self, record: Span) -> None:
        """Publish a request's span. Call it from one thread."""
        self._put(TIMELINE, self._next_record, record)
        self._next_record += 1

    def on_command(self, command: Callable[[Command], None]) -> None:
        """Have `command` called, in this publisher's thread, for requests that concern the tree."""
        self._command = command

    def describe_local_source(self, _block_size: int) -> dict[str, Any] | None:
        """SGLang asks for what a router of its own could read: there is none."""
        return None

    def shutdown(self) -> None:
        """Send what waits, and close. Publishing ends before; may be called again."""
        atexit.unregister(self.shutdown)
        if self._closing:
            return
        self._closing = True
        self._ring()
        self._thread.join()
        os.close(self._bell)

    def _socket(self, kind: int, hwm: int, key: ClusterKey | None) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.linger = 0
        socket.set_hwm(hwm)
        socket.maxmsgsize = MOST_REQUEST_BYTES
        as_listener(socket, key)
        return socket

    def _put(self, kind: str, number: int, content: Any) -> None:
        if len(self._queue) < self._max_queue_size:
            self._queue.append((kind, number, content))
            self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):  # rung 2^64 times: it rings
            os.eventfd_write(self._bell, 1)

    def _run(self) -> None:
        poller = zmq.Poller()
        watched = [monitor.socket for _, monitor in self._turned_away.values()]
        for source in (self._bell, self._out, self._router, *watched):
            poller.register(source, zmq.POLLIN)
        while not self._closing:
            ready = dict(poller.poll())
            try:
                if self._bell in ready:
                    os.eventfd_read(self._bell)
                if self._out in ready:
                    self._take_subscriptions()
                self._send()
                if self._router in ready:
                    self._answer(self._router.recv_multipart())
                for refusals, monitor in self._turned_away.values():
                    if monitor.socket in ready:
                        refusals.handshakes(monitor)
            except (
                Exception
            ):  # this thread's outermost loop: without it nothing is published any more
                log.exception("failed on a message of the event stream")
        self._send()
        self._context.destroy(linger=0)

    def _take_subscriptions(self) -> None:
        while self._out.poll(0):
            message = b"".join(self._out.recv_multipart())
            # The first byte is 1 for a subscription, 0 for its end; ZMQ reports each prefix once.
            prefix = message[1:]
            if message[:1] == b"\x00":
                self._subscriptions.discard(prefix)
            elif message[:1] != b"\x01":
                self._malformed(self._out, "that is no subscription")
            elif any(name.startswith(prefix) for name in self._topics):
                self._subscriptions.add(prefix)

    def _send(self) -> None:
        encode = msgspec.msgpack.encode
        while self._queue:
            kind, number, content = self._queue.popleft()
            name = topic_of(kind, self.incarnation)
            if any(name.startswith(prefix) for prefix in self._subscriptions):
                payload = encode(content)
                self._out.send_multipart((name, number.to_bytes(NUMBER_BYTES, "big"), payload))
                if kind == KV:
                    self._replay_buffer.add(number, payload)

    def _answer(self, frames: list[bytes]) -> None:
        peer, *_, content = frames
        try:
            request = msgspec.msgpack.decode(content, type=Request)
        except NOT_UNDERSTOOD as error:
            self._malformed(self._router, f"that is no request: {error}")
            self._reply(peer, RequestRefused(f"not a request of the event stream: {error}"))
            return
        position = Position(self.incarnation, self._next)
        if isinstance(request, Replay):
            self._reply_replay(peer, request, position)
        else:
            if isinstance(request, Command):
                self._command(request)
            self._reply(peer, position)

    def _malformed(self, socket: zmq.Socket[bytes], why: str) -> None:
        self._turned_away[socket][0].add(Refusal.MALFORMED, why)

    def _reply_replay(self, peer: bytes, request: Replay, position: Position) -> None:
        self._send()  # what is neither in this nor in the buffer was dropped
        batches = self._replay_buffer.since(request.first)
        if (
            request.incarnation != self.incarnation
            or batches is None
            or request.first + len(batches) < position.next
        ):
            self._reply(peer, Expired(self.incarnation, position.next))
        else:
            self._reply(peer, Replayed(self.incarnation, request.first, len(batches)), *batches)

    def _reply(self, peer: bytes, reply: Reply, *batches: bytes) -> None:
        self._router.send_multipart((peer, b"", msgspec.msgpack.encode(reply), *batches))


class _ReplayBuffer:
    """The last batches sent, without a gap, at most so many and so many bytes."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._batches: deque[bytes] = deque()
        self._first = self._bytes = 0

    def add(self, number: int, batch: bytes) -> None:
        if number != self._first + len(self._batches):
            self._batches.clear()
            self._first, self._bytes = number, 0
        self._batches.append(batch)
        self._bytes += len(batch)
        while len(self._batches) > self._most or self._bytes > self._most_bytes:
            self._bytes -= len(self._batches.popleft())
            self._first += 1

    def since(self, number: int) -> list[bytes] | None:
        """The batches from `number` on; None if they are not all there."""
        skipped = number - self._first
        if not 0 <= skipped <= len(self._batches):
            return None
        return list(self._batches)[skipped:]


def _no_tree(command: Command) -> None:
    log.warning(
        "the event stream was asked for %s, but there is no tree here", type(command).__name__
    )


def _address(socket: zmq.Socket[bytes]) -> str:
    return socket.get_string(zmq.LAST_ENDPOINT)
