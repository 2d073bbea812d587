"""The loop behind a worker's port for handoffs: what is no message is counted, and dropped."""

from __future__ import annotations

import os
import threading
from collections import Counter
from typing import Any

import pytest
import xxhash
import zmq

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.engine.transfer.messages import TAG, Alive, Message, decode, encode
from ps_sglang.engine.transfer.serving import serve
from ps_sglang.wires import HandshakeMonitor, Refusal, Refusals, as_client, as_listener
from tests.support.strangers import FRAMES, knock

pytestmark = pytest.mark.timeout(120)

KEY = ClusterKey.make()
LETTER = b"\x82\xa4type\xa5Alive\xa1x" + b"\x91" * 60_000 + b"\xc0"
GARBAGE = (
    [b""], [b"\x00" * 5], [b"ABORT"], [os.urandom(300)] * 3, [TAG + b"x" * 40],
    [TAG + xxhash.xxh3_64_digest(LETTER) + LETTER], [*encode(Alive("s", "p")), b"more"],
)  # fmt: skip


def test_nonsense_is_counted_and_the_next_message_is_taken() -> None:
    counted: Counter[Refusal] = Counter()
    received: list[Message] = []
    began, over = threading.Event(), threading.Event()

    def count(_socket: str, reason: Refusal, amount: int) -> None:
        counted[reason] += amount

    def receive(frames: list[Any]) -> None:
        received.append(decode(frames)[0])
        began.set()

    with zmq.Context() as context:
        as_listener(context, KEY)
        socket, refusals = context.socket(zmq.PULL), Refusals("transfer", count)
        handshakes = HandshakeMonitor(socket)
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        as_client(context, KEY)

        def tick() -> None:
            refusals.handshakes(handshakes)
            if len(received) == 2 and counted[Refusal.UNAUTHENTICATED] >= FRAMES:
                over.set()

        arguments = {"refusals": refusals, "until": over.is_set}
        thread = threading.Thread(target=serve, args=(socket, receive, tick), kwargs=arguments)
        thread.start()
        with context.socket(zmq.PUSH) as peer:
            peer.connect(f"tcp://127.0.0.1:{port}")
            peer.send_multipart(encode(Alive("session", "first")))
            assert began.wait(60)
            for number in range(FRAMES):
                peer.send_multipart(GARBAGE[number % len(GARBAGE)])
            knock(port)
            peer.send_multipart(encode(Alive("session", "last")))
            thread.join()
        socket.close()
        handshakes.socket.close()
    assert received == [Alive("session", "first"), Alive("session", "last")]
    assert counted == {Refusal.MALFORMED: FRAMES, Refusal.UNAUTHENTICATED: FRAMES}
