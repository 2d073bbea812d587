"""Messages of the handoff: what is sent is what is read, or nothing is."""

from __future__ import annotations

import msgspec
import pytest
import xxhash

from ps_sglang.engine.transfer.messages import (
    TAG,
    Alive,
    Cancelled,
    Fetch,
    MalformedMessageError,
    Memory,
    Message,
    Offer,
    Pages,
    Pull,
    Received,
    Register,
    Rejected,
    Unregistered,
    decode,
    encode,
    reply_endpoint,
)
from ps_sglang.engine.transfer.prefix_digest import PrefixDigest
from ps_sglang.engine.transfer.shared_pool import PoolDescriptor

SESSION, PEER = "tcp://10.0.0.1:5#ab", "tcp://10.0.0.2:6"
POOL = msgspec.msgpack.encode(PoolDescriptor("boot", 5, 6, 4096, b"nonce", [0, 8], [8, 8]))
MESSAGES: list[Message] = [
    Register(SESSION, PEER, "ps1:x", [8, 8], [64]),
    Memory(SESSION, PEER, "fe", msgspec.Raw(POOL)),
    Memory(SESSION, PEER, "fe", msgspec.Raw(b"\xc0")),
    Unregistered(SESSION, PEER),
    Alive(SESSION, PEER),
    Pull(SESSION, PEER, "fe", 3, 2**62, 12, 16, 20, b"digest"),
    Offer(SESSION, PEER, 3, 0, 0, 4, True, b"digest", b"rows", b"metadata"),
    Fetch(SESSION, PEER, 3, 0),
    Pages(SESSION, 3, 0),
    Received(SESSION, PEER, 3, [0, 1]),
    Cancelled(SESSION, PEER, 3, None, "why"),
    Rejected(SESSION, 3, "why"),
]


def frames_of(message: Message) -> list[bytes]:
    return encode(message, b"payload" if isinstance(message, Pages) else None)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_round_trip(message: Message) -> None:
    pages = b"payload" if isinstance(message, Pages) else None
    assert decode(frames_of(message)) == (message, pages)


def test_every_message_is_tried() -> None:
    assert {type(message) for message in MESSAGES} == set(Message.__args__)


def sealed(body: bytes) -> bytes:
    return TAG + xxhash.xxh3_64_digest(body) + body


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b""],
        [TAG],
        [b"PS_SGLANG/1" + encode(MESSAGES[0])[0][len(TAG) :]],
        [sealed(b"\xff")],
        [sealed(b"\x80")],
        [sealed(b"")],
        [sealed(b"\x82\xa1x" + b"\x91" * 200_000 + b"\xc0\xa4type\xa5Alive")],
        encode(Fetch(SESSION, PEER, 3, -1)),
        encode(Received(SESSION, PEER, 3, [-1])),
        encode(Offer(SESSION, PEER, 3, 0, -4, 4, True, b"", b"", b"")),
        encode(MESSAGES[0], b"pages"),
        encode(Pages(SESSION, 3, 0)),
    ],
)
def test_garbage_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(MalformedMessageError):
        decode(frames)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_no_bit_may_change(message: Message) -> None:
    head, *rest = frames_of(message)
    for bit in range(len(head) * 8):
        bent = bytearray(head)
        bent[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MalformedMessageError):
            decode([bytes(bent), *rest])


def test_session_names_where_answers_go() -> None:
    assert reply_endpoint(SESSION) == "tcp://10.0.0.1:5"


def test_base_prefix_is_that_of_the_token_ids() -> None:
    from array import array

    assert PrefixDigest.of([1, 2, 70_000]) == PrefixDigest.of(array("q", [1, 2, 70_000]))
    assert PrefixDigest.of([1, 2]) != PrefixDigest.of([2, 1])
    assert PrefixDigest.of([]) == PrefixDigest.of(array("q"))
    assert PrefixDigest.of([1, 2]).tokens == 2
