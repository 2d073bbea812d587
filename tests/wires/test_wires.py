"""Listening sockets let those through who have the cluster's key, and count the others."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator

import psutil
import pytest
import zmq

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.wires import (
    HandshakeMonitor,
    Refusal,
    Refusals,
    as_client,
    as_listener,
    is_guarded,
)
from tests.support.strangers import FRAMES, OPENINGS, gets_through, knock

pytestmark = pytest.mark.timeout(120)

KEY = ClusterKey.make()
KINDS = {zmq.PULL: zmq.PUSH, zmq.ROUTER: zmq.DEALER, zmq.XPUB: zmq.SUB}


class Listener:
    """A listening socket of one kind, and the connections it has turned away."""

    def __init__(self, kind: zmq.SocketType, key: ClusterKey | None) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(kind)
        self.socket.rcvtimeo = 20_000
        as_listener(self.socket, key)
        self.monitor = HandshakeMonitor(self.socket)
        self.port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        self.kind = KINDS[kind]
        self.client = self._context.socket(self.kind)
        self.client.linger = 0

    def connect(self, key: ClusterKey | None) -> None:
        as_client(self.client, key)
        self.client.connect(f"tcp://127.0.0.1:{self.port}")

    def refused(self, count: int) -> int:
        """How many connections were turned away, once they are `count` at least."""
        refused = 0
        while refused < count:
            assert self.monitor.socket.poll(20_000), f"{refused} of {count} were seen"
            refused += self.monitor.take()
        return refused

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture(params=KINDS, ids=lambda kind: zmq.SocketType(kind).name)
def listener(request: pytest.FixtureRequest) -> Iterator[Listener]:
    listener = Listener(request.param, KEY)
    yield listener
    listener.close()


def hears(listener: Listener, content: bytes) -> bool:
    """Whether what its client says comes through."""
    if listener.kind == zmq.SUB:
        listener.client.subscribe(content)
    else:
        listener.client.send(content)
    return content in listener.socket.recv_multipart()[-1]


def test_who_has_the_key_gets_through_and_nobody_else(listener: Listener) -> None:
    kind = listener.kind
    assert gets_through(listener.port, kind, KEY)
    for wrong in (None, ClusterKey.make()):
        assert not gets_through(listener.port, kind, wrong)
    assert listener.refused(2) >= 2
    listener.connect(KEY)
    assert hears(listener, b"hello")


def test_a_listener_without_a_key_takes_all() -> None:
    listener = Listener(zmq.PULL, None)
    assert gets_through(listener.port, zmq.PUSH, None)
    listener.close()


def test_nonsense_is_counted_and_harms_nobody(listener: Listener) -> None:
    listener.connect(KEY)
    assert hears(listener, b"before")
    process = psutil.Process()
    files, memory = process.num_fds(), process.memory_info().rss
    knock(listener.port)
    assert hears(listener, b"after")
    assert listener.refused(FRAMES) == FRAMES
    assert listener.monitor.take() == 0
    assert process.num_fds() <= files + len(OPENINGS)
    assert process.memory_info().rss - memory < 32 << 20


def test_who_leaves_was_not_turned_away(listener: Listener) -> None:
    for _ in range(3):
        assert gets_through(listener.port, listener.kind, KEY)
    assert not gets_through(listener.port, listener.kind, None)
    assert listener.refused(1) == 1


def test_a_context_passes_it_on() -> None:
    """As SGLang makes its sockets: the first one listens, later ones connect."""
    with zmq.Context() as context:
        as_listener(context, KEY)
        with context.socket(zmq.PULL) as pull:
            assert is_guarded(pull)
            port = pull.bind_to_random_port("tcp://127.0.0.1")
            as_client(context, KEY)
            with context.socket(zmq.PUSH) as push:
                assert is_guarded(push)
                push.connect(f"tcp://127.0.0.1:{port}")
                monitor = push.get_monitor_socket(zmq.EVENT_DISCONNECTED)  # as SGLang's
                push.send(b"hello")
                assert pull.poll(20_000)
                assert pull.recv() == b"hello"
                push.disable_monitor()
                monitor.close()
        with context.socket(zmq.PULL) as open_to_all:
            as_listener(open_to_all, None)
    with zmq.Context() as context, context.socket(zmq.PULL) as plain:
        assert not is_guarded(plain)


def test_the_log_is_told_but_not_each_time(caplog: pytest.LogCaptureFixture) -> None:
    counted: Counter[tuple[str, Refusal]] = Counter()

    def count(socket: str, reason: Refusal, amount: int) -> None:
        counted[socket, reason] += amount

    with caplog.at_level(logging.WARNING):
        refusals = Refusals("transfer", count)
        assert set(counted) == {("transfer", reason) for reason in Refusal}
        for number in range(1000):
            refusals.add(Refusal.MALFORMED, f"number {number}")
        refusals.add(Refusal.UNAUTHENTICATED, "none", 0)
    assert counted["transfer", Refusal.MALFORMED] == 1000
    assert counted["transfer", Refusal.UNAUTHENTICATED] == 0
    assert "transfer socket: turned away 1, number 0" in caplog.text
    assert len(caplog.records) < 100
