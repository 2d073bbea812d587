"""Messages from scheduler to scheduler: what fits is there at once, all else goes by zmq."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import zmq

from ps_sglang.engine.transfer.mailbox import Mailbox
from ps_sglang.engine.transfer.messages import Frames, MalformedMessageError
from ps_sglang.engine.transfer.outbox import Outbox
from ps_sglang.engine.waiting import Doorbell

LONG_MS = 60_000  # far beyond the test's own limit: a wait that nothing ends fails the test

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
def here() -> Iterator[Mailbox]:
    with closing(Mailbox(secrets.token_hex(8))) as mailbox:
        yield mailbox


@pytest.fixture
def name() -> str:
    return secrets.token_hex(8)


@pytest.fixture
def there(name: str) -> Iterator[Mailbox]:
    with closing(Mailbox(name)) as mailbox:
        yield mailbox


def collected(mailbox: Mailbox) -> list[bytes]:
    messages: list[Frames] = []
    mailbox.collect(messages.append)
    return [frame for (frame,) in messages]


def test_messages_are_there_at_once_and_in_order(here: Mailbox, there: Mailbox, name: str) -> None:
    assert collected(there) == []
    assert [here.post(name, message) for message in (b"one", b"two")] == [True, True]
    assert collected(there) == [b"one", b"two"]
    assert collected(there) == []


def test_a_mailbox_that_this_host_does_not_have_takes_nothing(here: Mailbox, name: str) -> None:
    assert not here.post(name, b"one")
    with closing(Mailbox(name)) as there:
        assert here.post(name, b"two")
        assert collected(there) == [b"two"]
    assert not here.post(name, b"three")


def test_a_full_mailbox_takes_nothing_and_blocks_nobody(
    here: Mailbox, there: Mailbox, name: str
) -> None:
    posted = 0
    while here.post(name, b"%d" % posted):
        posted += 1
        assert posted < 100_000, "it is never full"
    assert posted > 0
    assert collected(there) == [b"%d" % number for number in range(posted)]
    assert here.post(name, b"again")


def test_a_message_comes_whole_or_not_at_all(here: Mailbox, there: Mailbox, name: str) -> None:
    longest = bytes(1 << 16)
    assert not here.post(name, longest + b"!")
    assert here.post(name, longest)
    assert collected(there) == [longest]


def test_what_cannot_be_understood_does_not_hide_what_follows(
    here: Mailbox, there: Mailbox, name: str
) -> None:
    understood = []

    def receive(frames: Frames) -> None:
        if frames == [b"noise"]:
            raise MalformedMessageError("noise")
        if frames == [b"bomb"]:
            raise RecursionError("the scheduler collects: it must not end of this")
        understood.append(frames)

    for message in (b"one", b"noise", b"bomb", b"two"):
        assert here.post(name, message)
    there.collect(receive)
    assert understood == [[b"one"], [b"two"]]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_can_neither_post_by_name_nor_forge_a_message(
    there: Mailbox, name: str
) -> None:
    (address,) = (
        line.split()[-1].replace("@", "\0", 1)
        for line in Path("/proc/net/unix").read_text().splitlines()
        if line.endswith(name)
    )
    as_another = (
        "import os, socket, sys; from ps_sglang.engine.transfer.mailbox import Mailbox;"
        "os.setuid(65534); name, address = sys.argv[1:]; address = chr(0) + address;"
        "sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM);"
        "sender.sendto(b'forged', address);"
        "sys.exit(Mailbox('of another user').post(name, b'by name'))"
    )
    command = [sys.executable, "-c", as_another, name, address[1:]]
    assert subprocess.run(command, check=False, timeout=15).returncode == 0
    assert collected(there) == []


def test_a_message_ends_a_wait(here: Mailbox, there: Mailbox, name: str) -> None:
    with closing(Doorbell([])) as bell:
        bell.listen(there.fd)
        assert here.post(name, b"one")
        bell.wait(LONG_MS)


def test_outbox_posts_if_it_can_and_uses_zmq_otherwise(
    here: Mailbox, there: Mailbox, name: str
) -> None:
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        endpoint = f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"
        with closing(Outbox(context, here)) as outbox:
            outbox.send(f"{endpoint}#{name}", [b"posted"])
            assert collected(there) == [b"posted"]
            outbox.send(endpoint, [b"to no mailbox"])
            outbox.send(f"{endpoint}#{name}", [too_long := bytes((1 << 16) + 1)])
            outbox.send(f"{endpoint}#restarted", [b"to one that is gone"])
            assert [socket.recv() for _ in range(3)] == [
                b"to no mailbox", too_long, b"to one that is gone",
            ]  # fmt: skip
            assert collected(there) == []


def test_outbox_without_a_mailbox_uses_zmq(there: Mailbox, name: str) -> None:
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        endpoint = f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"
        with closing(Outbox(context)) as outbox:
            outbox.send(f"{endpoint}#{name}", [b"one"])
            assert socket.recv() == b"one"
        assert collected(there) == []


def test_outbox_has_so_many_sockets_and_no_more(name: str) -> None:
    """Whoever speaks to a worker names the endpoint of the answer."""
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        here = f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"
        before = len(os.listdir("/proc/self/fd"))
        with closing(Outbox(context)) as outbox:
            for number in range(1200):
                outbox.send(f"tcp://127.0.0.2:{10_000 + number}", [b"garbage"])
                outbox.send(f"nonsense {number}", [b"garbage"])
                if number % 100 == 0:
                    outbox.send(here, [b"%d" % number])
            assert [socket.recv() for _ in range(12)] == [b"%d" % n for n in range(0, 1200, 100)]
            assert len(outbox._sockets) == 256
            # Each has one of its own and one of its connection; zmq closes them in its own time.
            while len(os.listdir("/proc/self/fd")) - before >= 2 * 256 + 50:
                pass
