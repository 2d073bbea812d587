"""Messages of the event stream, the channel between a worker and the gateway.

Published by the worker (ZMQ PUB), three frames each: the topic, a number (8 bytes, big-endian,
unsigned) and the content in msgpack.

- Topic `kv:<incarnation>`: a `KvEventBatch`, what the worker's tree took in and let go, in the
  order in which it happened. Batches are numbered from 0 without a gap.
- Topic `timeline:<incarnation>`: a `Span`, numbered likewise on its own.

The incarnation is a random hexadecimal text of each worker process: where it changes, the worker
has restarted with an empty tree.

Asked by the gateway (ZMQ REQ or DEALER to the worker's ROUTER): an empty frame and a
`Request`. The worker answers with an empty frame, a `Reply`, and for `Replayed` one more frame per
batch. Nothing is ever asked of the gateway.

The KV events are those of SGLang (and vLLM) on the wire; they are restated here because the
gateway and this package know no SGLang.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

PUBLISHER: Final = "ps_sglang"
"""The event stream's name among SGLang's publishers of KV events."""
KV: Final = "kv"
TIMELINE: Final = "timeline"
NUMBER_BYTES: Final = 8
MOST_REQUEST_BYTES: Final = 1 << 20
MOST_BYTES: Final = 256 << 20
"""A frame with more, to a worker or from one, ends its connection."""
NOT_UNDERSTOOD: Final = (ValueError, RecursionError)
"""Errors of decoding a malformed message; those of msgspec are ValueErrors."""


class BlockStored(msgspec.Struct, tag=True, omit_defaults=True, frozen=True, gc=False):
    """Consecutive blocks of one prefix are in the tree now.

    `block_hashes` name content: the tokens of the block and of all before it, and `cache_salt`,
    the tenant. `parent_block_hash` is the block before the first, None at the beginning.
    `token_ids` are the tokens of all the blocks, `block_size` each.
    """

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: Annotated[int, msgspec.Meta(ge=1)]
    lora_id: int | None = None
    medium: str | None = None
    cache_salt: str | None = None
    session_id: str | None = None
    lora_name: str | None = None


class BlockRemoved(msgspec.Struct, tag=True, omit_defaults=True, frozen=True, gc=False):
    """These blocks have left the tree."""

    block_hashes: list[int]
    medium: str | None = None


class AllBlocksCleared(msgspec.Struct, tag=True, frozen=True, gc=False):
    """The tree is empty now; a snapshot begins with it too."""


KvEvent = BlockStored | BlockRemoved | AllBlocksCleared


class KvEventBatch(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Events that happened by `ts` (Unix time, seconds)."""

    ts: float
    events: list[KvEvent]
    attn_dp_rank: int | None = None


class Span(msgspec.Struct, omit_defaults=True, frozen=True, kw_only=True, gc=False):
    """Where a request's time went on one worker; durations in seconds, counts in tokens.

    `rid` is the request's id, as the gateway sent it, and `began` the Unix time at which the
    worker took it up. Both roles: `queue` is the time until work for it could begin. Prefill
    worker: `wait` for another request that was computing the same prefix, `prefill` the forward
    passes, `send` until the decode worker had all pages. Decode worker: `pull` until the pages were
    received, `first_step` from there to the first output token, `decode` from there to the end.
    The base prefix is `held` (by its tree) + `pulled` on a decode worker; on a prefill worker
    it is `computed` + `held`, and both are 0 where the decode worker needed nothing of it.
    `pulled_bytes` are the bytes of KV moved for the request, and `output` is how many tokens a
    decode worker generated. An aggregated worker publishes two:
    a prefill worker's, and a decode worker's of which only `decode` and `output` say something.
    """

    rid: str
    role: Literal["prefill", "decode"]
    began: float
    queue: float = 0.0
    wait: float = 0.0
    prefill: float = 0.0
    send: float = 0.0
    pull: float = 0.0
    first_step: float = 0.0
    decode: float = 0.0
    computed: int = 0
    held: int = 0
    pulled: int = 0
    pulled_bytes: int = 0
    output: int = 0


class Status(msgspec.Struct, tag=True, frozen=True):
    """Asks for the event stream's position; answered `Position`."""


class Replay(msgspec.Struct, tag=True, frozen=True):
    """Asks for the batches of KV events from number `first` on.

    Answered `Replayed`, or `Expired` if one of them is not kept any more or the incarnation is not
    the worker's.
    """

    incarnation: str
    first: int


class Snapshot(msgspec.Struct, tag=True, frozen=True):
    """Asks for the whole tree, published as AllBlocksCleared and BlockStored of all it holds.

    Answered `Position` at once: the snapshot's batch has the number `next` or a later one.
    """


class Release(msgspec.Struct, tag=True, frozen=True):
    """The conversation is over: pages that only it uses may go first. Answered `Position`."""

    session: str


class Pin(msgspec.Struct, tag=True, frozen=True):
    """The conversation's pages should go last for so many seconds. Answered `Position`.

    A full pool evicts them nonetheless when there is nothing else to evict.
    """

    session: str
    seconds: Annotated[float, msgspec.Meta(ge=0)]


Request = Status | Replay | Snapshot | Release | Pin


class Position(msgspec.Struct, tag=True, frozen=True):
    """The worker's incarnation, and the number that its next batch of KV events will have."""

    incarnation: str
    next: int


class Replayed(msgspec.Struct, tag=True, frozen=True):
    """The batches `first` .. `first` + `count` - 1, one in each of the frames that follow."""

    incarnation: str
    first: int
    count: int


class Expired(msgspec.Struct, tag=True, frozen=True):
    """What was asked for cannot be replayed: ask for a snapshot. `next` as in `Position`."""

    incarnation: str
    next: int


class RequestRefused(msgspec.Struct, tag=True, frozen=True):
    """The request could not be understood."""

    reason: str


Reply = Position | Replayed | Expired | RequestRefused


def topic(kind: str, incarnation: str) -> bytes:
    """The topic of messages of a kind (KV, TIMELINE)."""
    return f"{kind}:{incarnation}".encode()


def read_topic(frame: bytes) -> tuple[str, str]:
    """The kind and the incarnation of a topic; raises ValueError if it is none."""
    kind, separator, incarnation = frame.decode().partition(":")
    if not separator:
        raise ValueError(f"{frame!r} is no topic of an event stream")
    return kind, incarnation
