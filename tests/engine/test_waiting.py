"""The doorbell: a wait ends by a ring or a message, and no ring is lost."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
import zmq

from ps_sglang.engine.waiting import Doorbell

LONG_MS = 60_000  # far beyond the test's own limit: a wait that nothing ends fails the test

pytestmark = pytest.mark.timeout(20)


def test_a_ring_ends_the_wait() -> None:
    with contextlib.closing(Doorbell([])) as bell:
        threading.Thread(target=bell.ring).start()
        bell.wait(LONG_MS)


def test_a_ring_before_the_wait_is_heard() -> None:
    with contextlib.closing(Doorbell([])) as bell:
        bell.ring()
        bell.wait(LONG_MS)


def test_any_number_of_rings_is_one() -> None:
    """Ringing never blocks, even with nobody listening, and is over after one wait."""
    with contextlib.closing(Doorbell([])) as bell:
        for _ in range(1_000_000):
            bell.ring()
        bell.wait(LONG_MS)
        started = time.monotonic()
        bell.wait(50)
        assert time.monotonic() - started >= 0.05, "an old ring ended a later wait"


def test_another_sleeper_hears_rings_until_the_bell_is_quiet() -> None:
    with contextlib.closing(Doorbell([])) as bell:
        poller = zmq.Poller()
        poller.register(bell.fd, zmq.POLLIN)
        assert not poller.poll(0)
        bell.ring()
        assert poller.poll(LONG_MS)
        bell.quiet()
        assert not poller.poll(0)


def test_a_message_ends_the_wait() -> None:
    context = zmq.Context()
    receiver, sender = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    port = receiver.bind_to_random_port("tcp://127.0.0.1")
    sender.connect(f"tcp://127.0.0.1:{port}")
    with contextlib.closing(Doorbell([receiver])) as bell:
        sender.send(b"request")
        bell.wait(LONG_MS)
        assert receiver.recv(zmq.NOBLOCK) == b"request"
    context.destroy(linger=0)
