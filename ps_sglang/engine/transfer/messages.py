"""Messages between the KV managers of a decode worker and a prefill worker.

A message is one frame: `TAG`, a checksum of what follows it, and msgpack. A message that was
damaged or cut off is dropped, and the timers send it again. Pages
follow in a frame of their own, which the digest of their batch covers.

A *session* is one decode worker process, named `<zmq endpoint for answers>#<random>`. A *pull*
is one handoff as that process numbers it, so what still travels for an earlier use of a room is
never taken for the present one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
import xxhash

TAG: Final = b"PS_SGLANG/2"
_BODY: Final = len(TAG) + 8
MOST_BYTES: Final = 256 << 20
"""A frame with more ends its connection; batches of pages are far smaller."""

PREFILL_ABORTED: Final = "the prefill worker aborted the request"
PREFILL_REFUSED: Final = "the prefill worker refused the request"
PREFILL_GAVE_UP: Final = "the prefill worker gave the request up"
DECODE_ABORTED: Final = "the decode worker aborted the request"
ABORTS: Final = frozenset((PREFILL_ABORTED, PREFILL_REFUSED, PREFILL_GAVE_UP, DECODE_ABORTED))
"""Reasons for which nothing comes although nothing went wrong."""


def restarted(prefill_worker: str) -> str:
    """The reason when another process has what a decode worker calls `prefill_worker`."""
    return f"prefill worker {prefill_worker} restarted"


Count = Annotated[int, msgspec.Meta(ge=0)]


class Register(msgspec.Struct, frozen=True, tag=True):
    """Decode -> prefill, before the first pull: who asks, and how its memory is laid out."""

    session: str
    peer: str  # what the decode worker calls this prefill worker; answers repeat it
    base_fingerprint: str
    page_item_lens: list[int]  # bytes of one page in each KV buffer, layer by layer
    aux_item_lens: list[int]  # bytes of one metadata slot in each buffer


class Memory(msgspec.Struct, frozen=True, tag=True):
    """Prefill -> decode, answers Register: which process this is, and how to map its pool."""

    session: str
    peer: str
    incarnation: str  # random, one per prefill worker process
    pool: msgspec.Raw  # how a process of its host opens its KV pool: PageMemory.describe()


class Unregistered(msgspec.Struct, frozen=True, tag=True):
    """Prefill -> decode: a message came from a session that this process does not know."""

    session: str
    peer: str


class Alive(msgspec.Struct, frozen=True, tag=True):
    """Both ways, decode asks and prefill answers: this process is there."""

    session: str
    peer: str


class Pull(msgspec.Struct, frozen=True, tag=True):
    """Decode -> prefill: the delta that a request lacks. Repeated until it is offered."""

    session: str
    peer: str
    incarnation: str  # of the prefill worker process that was asked first
    pull: Count
    room: Count
    pages: Count  # how many the decode worker lacks
    prefix_tokens: Count  # tokens of the prompt it holds already
    token_count: Count  # tokens of the base prefix
    token_digest: bytes  # as PrefixDigest.of() computes it


class Offer(msgspec.Struct, frozen=True, tag=True):
    """Prefill -> decode: pages `[first, first + count)` of the delta are ready.

    Host memory has it sent twice: at once, so that the pages can be copied, and again with digest
    and metadata.
    """

    session: str
    peer: str
    pull: Count
    seq: Count
    first: Count
    count: Count
    last: bool
    digest: bytes  # of the pages, as PageMemory computes it; empty if it follows
    rows: bytes  # the prefill worker's page numbers, int32
    metadata: bytes  # with the last batch's digest: a row of the metadata buffers, packed


class Fetch(msgspec.Struct, frozen=True, tag=True):
    """Decode -> prefill: send the pages of an offered batch."""

    session: str
    peer: str
    pull: Count
    seq: Count


class Pages(msgspec.Struct, frozen=True, tag=True):
    """Prefill -> decode: the pages of a batch, in a frame of their own, packed."""

    session: str
    pull: Count
    seq: Count


class Received(msgspec.Struct, frozen=True, tag=True):
    """Decode -> prefill: batches are in the decode worker's pool, and their digests fit."""

    session: str
    peer: str
    pull: Count
    seqs: list[Count]


class Cancelled(msgspec.Struct, frozen=True, tag=True):
    """Decode -> prefill: this pull is over, or is not known."""

    session: str
    peer: str
    pull: Count
    room: Count | None  # None if the decode worker has forgotten the pull
    reason: str


class Rejected(msgspec.Struct, frozen=True, tag=True):
    """Prefill -> decode: nothing (more) will come for this pull."""

    session: str
    pull: Count
    reason: str


FromDecode = Register | Alive | Pull | Fetch | Received | Cancelled
FromPrefill = Memory | Unregistered | Alive | Offer | Pages | Rejected
Message = FromDecode | FromPrefill
Frames = list[Any]  # bytes-like objects

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


class MalformedMessageError(ValueError):
    """Frames that are no message of this protocol version, or were damaged on the way."""


def encode(message: Message, pages: Any = None) -> Frames:
    """The frames of a message; `pages` come with `Pages` alone."""
    body = _encoder.encode(message)
    head = TAG + xxhash.xxh3_64_digest(body) + body
    return [head] if pages is None else [head, pages]


def decode(frames: Sequence[Any]) -> tuple[Message, Any]:
    """A message, and the frame with its pages if it is one of `Pages`.

    Raises MalformedMessageError if the frames are not of this protocol version, or are damaged.
    """
    head = bytes(frames[0]) if frames else b""
    if not head.startswith(TAG):
        raise MalformedMessageError(f"{len(frames)} frames do not start with {TAG!r}")
    checksum, body = head[len(TAG) : _BODY], head[_BODY:]
    if checksum != xxhash.xxh3_64_digest(body):
        raise MalformedMessageError("a message was damaged on the way")
    try:
        message = _decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedMessageError(f"not a message: {error}") from error
    if len(frames) != 1 + isinstance(message, Pages):
        raise MalformedMessageError(f"{len(frames)} frames of {type(message).__name__}")
    return message, frames[1] if len(frames) == 2 else None


def reply_endpoint(session: str) -> str:
    """The zmq endpoint where a session hears answers."""
    return session.partition("#")[0]
