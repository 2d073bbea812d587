"""The publisher over real sockets: numbers without gaps, replays, requests, and overload."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import zmq

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.events.messages import (
    MOST_REQUEST_BYTES,
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    Expired,
    KvEventBatch,
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
    Status,
    read_topic,
    topic,
)
from ps_sglang.events.publisher import WorkerEventPublisher
from ps_sglang.wires import Refusal, as_client
from tests.support.strangers import FRAMES, gets_through, knock

SPAN = Span(rid="r", role="decode", began=1.5, queue=0.25, pulled=7)


@pytest.fixture
def publisher() -> Iterator[WorkerEventPublisher]:
    publisher = WorkerEventPublisher(buffer_steps=4)
    yield publisher
    publisher.shutdown()


class Peer:
    """A subscriber and asker."""

    def __init__(self, publisher: WorkerEventPublisher, key: ClusterKey | None = None) -> None:
        self._context = zmq.Context()
        as_client(self._context, key)
        self.news = self._context.socket(zmq.SUB)
        self.control = self._context.socket(zmq.REQ)
        for socket in (self.news, self.control):
            socket.rcvtimeo = 20_000
        self._publisher = publisher
        self.news.connect(publisher.endpoint)
        self.control.connect(publisher.control)

    def subscribe(self) -> None:
        """Subscribe to everything; published batches arrive from now on."""
        self.news.subscribe(b"")
        while not self.news.poll(1):  # a subscription takes effect at some time
            self._publisher.record(SPAN)
        self._publisher.record(msgspec.structs.replace(SPAN, rid="last"))
        while self.record().rid != "last":
            pass

    def unsubscribe(self) -> None:
        self.news.unsubscribe(b"")

    def ask(self, request: Request) -> tuple[Reply, list[bytes]]:
        return self.ask_raw(msgspec.msgpack.encode(request))

    def ask_raw(self, content: bytes) -> tuple[Reply, list[bytes]]:
        self.control.send(content)
        reply, *batches = self.control.recv_multipart()
        return msgspec.msgpack.decode(reply, type=Reply), batches

    def batch(self) -> tuple[int, KvEventBatch]:
        name, number, content = self.news.recv_multipart()
        assert name == topic("kv", self._publisher.incarnation)
        return int.from_bytes(number, "big"), msgspec.msgpack.decode(content, type=KvEventBatch)

    def record(self) -> Span:
        name, _, content = self.news.recv_multipart()
        assert name == topic("timeline", self._publisher.incarnation)
        return msgspec.msgpack.decode(content, type=Span)

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture
def peer(publisher: WorkerEventPublisher) -> Iterator[Peer]:
    peer = Peer(publisher)
    yield peer
    peer.close()


def batch(number: int) -> KvEventBatch:
    return KvEventBatch(float(number), [BlockRemoved([number])])


def test_batches_arrive_whole_and_in_order(publisher: WorkerEventPublisher, peer: Peer) -> None:
    peer.subscribe()
    stored = BlockStored([1, -2], None, [5, 6], 1, medium="GPU", cache_salt="t")
    sent = [KvEventBatch(0.5, [AllBlocksCleared(), stored]), *map(batch, range(1, 20))]
    for item in sent:
        publisher.publish(item)
    assert [peer.batch() for _ in sent] == list(enumerate(sent))
    publisher.record(SPAN)
    assert peer.record() == SPAN


def test_the_wire_is_sglangs(publisher: WorkerEventPublisher, peer: Peer) -> None:
    """Events are tagged maps without the fields that are not set, batches are arrays."""
    peer.subscribe()
    publisher.publish(KvEventBatch(0.5, [BlockStored([1], None, [5], 1), AllBlocksCleared()]))
    _, number, content = peer.news.recv_multipart()
    assert number == b"\0" * 8
    stored = {
        "type": "BlockStored",
        "block_hashes": [1],
        "parent_block_hash": None,
        "token_ids": [5],
        "block_size": 1,
    }
    assert msgspec.msgpack.decode(content) == [0.5, [stored, {"type": "AllBlocksCleared"}], None]


def test_replay_has_what_is_kept_and_says_what_is_gone(
    publisher: WorkerEventPublisher, peer: Peer
) -> None:
    peer.subscribe()
    for number in range(6):
        publisher.publish(batch(number))
        peer.batch()
    mine = publisher.incarnation
    assert peer.ask(Status()) == (Position(mine, 6), [])
    for first, kept in ((2, [2, 3, 4, 5]), (5, [5]), (6, [])):
        reply, batches = peer.ask(Replay(mine, first))
        assert reply == Replayed(mine, first, len(kept))
        decoded = [msgspec.msgpack.decode(one, type=KvEventBatch) for one in batches]
        assert decoded == [batch(number) for number in kept]
    for lost in (Replay(mine, 1), Replay(mine, 7), Replay("another", 5)):
        assert peer.ask(lost) == (Expired(mine, 6), [])


def test_what_nobody_heard_is_not_claimed_to_be_kept(
    publisher: WorkerEventPublisher, peer: Peer
) -> None:
    peer.subscribe()
    publisher.publish(batch(0))
    assert peer.batch()[0] == 0
    peer.unsubscribe()
    published = 1
    # Until the publisher has noticed that nobody listens, it keeps batches.
    while isinstance(peer.ask(Replay(publisher.incarnation, published - 1))[0], Replayed):
        publisher.publish(batch(published))
        published += 1
    publisher.publish(batch(published))
    reply, _ = peer.ask(Replay(publisher.incarnation, published))
    assert reply == Expired(publisher.incarnation, published + 1)


def test_overload_is_a_gap_not_a_wait(peer: Peer, publisher: WorkerEventPublisher) -> None:
    """The sender's thread is held up by a command; the queue takes two, the rest is dropped."""
    small = WorkerEventPublisher(max_queue_size=2)
    other = Peer(small)
    held, go_on = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        held.set()
        go_on.wait(20)

    try:
        other.subscribe()
        small.on_command(hold)
        other.control.send(msgspec.msgpack.encode(Snapshot()))
        assert held.wait(20)
        for number in range(5):
            small.publish(batch(number))
        go_on.set()
        other.control.recv()
        other.ask(Status())  # answered after the queue has been sent
        small.publish(batch(5))
        assert [other.batch()[0] for _ in range(3)] == [0, 1, 5]
        assert other.ask(Replay(small.incarnation, 2))[0] == Expired(small.incarnation, 6)
        assert other.ask(Replay(small.incarnation, 5))[0] == Replayed(small.incarnation, 5, 1)
    finally:
        go_on.set()
        other.close()
        small.shutdown()


def test_commands_reach_the_owner_in_order(publisher: WorkerEventPublisher, peer: Peer) -> None:
    received: list[object] = []
    publisher.on_command(received.append)
    commands: list[Request] = [Release("s"), Pin("s", 2.5), Snapshot()]
    for command in commands:
        assert peer.ask(command) == (Position(publisher.incarnation, 0), [])
    assert received == commands


def test_nonsense_is_refused_by_name(publisher: WorkerEventPublisher, peer: Peer) -> None:
    for content in (b"", b"\xc1", msgspec.msgpack.encode({"type": "Bake"}), b"\0" * 8):
        reply, _ = peer.ask_raw(content)
        assert isinstance(reply, RequestRefused)
        assert reply.reason.startswith("not a request of the event stream: ")
    assert peer.ask(Status())[0] == Position(publisher.incarnation, 0)


def test_each_publisher_is_another_incarnation(publisher: WorkerEventPublisher) -> None:
    other = WorkerEventPublisher()
    assert other.incarnation != publisher.incarnation
    other.shutdown()
    other.shutdown()


def test_an_address_in_use_is_an_error(publisher: WorkerEventPublisher) -> None:
    with pytest.raises(zmq.ZMQError, match="Address already in use"):
        WorkerEventPublisher(endpoint=publisher.endpoint)
    with pytest.raises(zmq.ZMQError, match="Address already in use"):
        WorkerEventPublisher(replay_endpoint=publisher.control)


@pytest.mark.parametrize(
    "wrong", [{"attn_dp_rank": 1}, {"topic": "t"}, {"replay_endpoint": None}, {"bind": False}]
)
def test_settings_without_a_meaning_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"leave out --dp-size|set both addresses"):
        WorkerEventPublisher(**wrong)


def test_topics() -> None:
    assert read_topic(topic("kv", "0a")) == ("kv", "0a")
    with pytest.raises(ValueError, match="no topic of an event stream"):
        read_topic(b"kv")


def test_the_event_stream_knows_no_engine() -> None:
    """The gateway and stand-in engines use it."""
    program = (
        "import sys, ps_sglang.events.publisher, ps_sglang.events.messages; "
        "print(sorted({'torch', 'sglang', 'transformers'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert run.stdout == b"[]\n"


# A request with a field that nobody knows, of arrays in arrays.
NESTED = b"\x82\xa4type\xa6Status\xa1x" + b"\x91" * 200_000 + b"\xc0"
GARBAGE = [
    [b""], [b"", b""], [b"\xff\xfe"], [NESTED], [b"", NESTED], [b"x"] * 50, [b"\x81\xa4type"],
    [msgspec.msgpack.encode({"type": "Pin", "session": "s", "seconds": float("nan")})],
    [msgspec.msgpack.encode({"type": "Replay", "incarnation": 1, "first": 2**70 % 2**63})],
    [msgspec.msgpack.encode({"type": "Replay", "incarnation": "x", "first": -1})],
]  # fmt: skip


@pytest.mark.parametrize("frames", GARBAGE, ids=lambda frames: repr(frames)[:30])
def test_nothing_that_is_asked_ends_the_thread(
    publisher: WorkerEventPublisher, peer: Peer, frames: list[bytes]
) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as sender:
        sender.linger, sender.rcvtimeo = 0, 20_000
        sender.connect(publisher.control)
        sender.send_multipart(frames)
        sender.recv_multipart()
    assert peer.ask(Status()) == (Position(publisher.incarnation, 0), [])


def test_a_command_that_fails_does_not_end_the_thread(
    publisher: WorkerEventPublisher, peer: Peer
) -> None:
    asked = threading.Event()

    def fail(command: object) -> None:
        asked.set()
        raise RuntimeError(command)

    publisher.on_command(fail)
    with zmq.Context() as context, context.socket(zmq.DEALER) as sender:
        sender.linger = 0
        sender.connect(publisher.control)
        sender.send_multipart([b"", msgspec.msgpack.encode(Snapshot())])
        assert asked.wait(20)
    assert peer.ask(Status()) == (Position(publisher.incarnation, 0), [])


def test_a_giant_request_is_not_even_read(publisher: WorkerEventPublisher, peer: Peer) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as sender:
        sender.linger, sender.rcvtimeo = 0, 500
        sender.connect(publisher.control)
        sender.send_multipart([b"", bytes(MOST_REQUEST_BYTES + 1)])
        with pytest.raises(zmq.Again):
            sender.recv_multipart()
    assert peer.ask(Status()) == (Position(publisher.incarnation, 0), [])


def test_subscriptions_to_what_is_never_published_are_not_kept(
    publisher: WorkerEventPublisher, peer: Peer
) -> None:
    for number in range(500):
        peer.news.subscribe(b"kv:-%d" % number)
    peer.news.subscribe(b"\xff" * 1000)
    peer.subscribe()
    assert publisher._subscriptions == {b""}


class Counted:
    """What a publisher has turned away, by socket and reason."""

    def __init__(self) -> None:
        self._total = Counter[tuple[str, Refusal]]()
        self._changed = threading.Condition()

    def __call__(self, socket: str, reason: Refusal, amount: int) -> None:
        with self._changed:
            self._total[socket, reason] += amount
            self._changed.notify()

    def reaches(self, socket: str, reason: Refusal, count: int) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._total[socket, reason] >= count, 60)


def test_only_who_has_the_key_is_heard() -> None:
    key, counted = ClusterKey.make(), Counted()
    publisher = WorkerEventPublisher(key=key, count=counted)
    peer = Peer(publisher, key)
    try:
        for name, address, kind in (
            ("events", publisher.endpoint, zmq.SUB),
            ("control", publisher.control, zmq.DEALER),
        ):
            port = int(address.rpartition(":")[2])
            for wrong in (None, ClusterKey.make()):
                assert not gets_through(port, kind, wrong)
            knock(port)
            assert counted.reaches(name, Refusal.UNAUTHENTICATED, FRAMES + 2)
        peer.subscribe()
        for number in range(FRAMES):
            reply, _ = peer.ask_raw(b"\x91" * (number % 7) + b"nonsense")
            assert isinstance(reply, RequestRefused)
        assert counted.reaches("control", Refusal.MALFORMED, FRAMES)
        publisher.publish(batch(0))
        assert peer.batch() == (0, batch(0))
        assert peer.ask(Status()) == (Position(publisher.incarnation, 1), [])
    finally:
        peer.close()
        publisher.shutdown()
