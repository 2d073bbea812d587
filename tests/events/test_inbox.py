"""A subscription in the event loop, over a real socket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq

from ps_sglang.events.inbox import Inbox


@pytest.fixture
def published() -> Iterator[zmq.Socket[bytes]]:
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.XPUB)
    socket.setsockopt(zmq.LINGER, 0)
    socket.bind("tcp://127.0.0.1:0")
    yield socket
    socket.close()


async def test_messages_of_a_topic_are_taken_in_order(published: zmq.Socket[bytes]) -> None:
    inbox = Inbox(published.get_string(zmq.LAST_ENDPOINT), [b"kv:"])
    try:
        assert published.recv() == b"\x01kv:"
        for topic, content in ((b"kv:1", b"a"), (b"other", b"b"), (b"kv:2", b"c")):
            published.send_multipart((topic, content))
        messages: list[list[bytes]] = []
        while len(messages) < 2:
            assert await inbox.wait(10)
            while (message := inbox.take()) is not None:
                messages.append(message)
        assert messages == [[b"kv:1", b"a"], [b"kv:2", b"c"]]
    finally:
        inbox.close()


async def test_waiting_ends(published: zmq.Socket[bytes]) -> None:
    inbox = Inbox(published.get_string(zmq.LAST_ENDPOINT), [b""])
    try:
        assert not await inbox.wait(0.01)
        assert inbox.take() is None
    finally:
        inbox.close()


async def test_an_address_that_is_none() -> None:
    with pytest.raises(zmq.ZMQError):
        Inbox("nowhere", [b""])
