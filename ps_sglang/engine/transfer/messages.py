"""Messages between the KV managers of a decode worker and a prefill worker.

They travel on the sockets that SGLang's common manager opens (disaggregation/common/conn.py),
beside SGLang's own ABORT and status messages. The first frame is :data:`TAG`, the second a
msgpack header, the rest is payload.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

TAG: Final = b"PS_SGLANG/1"


class Register(msgspec.Struct, frozen=True, tag=True):
    """Decode -> prefill, once per connection: who asks, and how its memory is laid out."""

    session: str
    base_fingerprint: str
    page_item_lens: list[int]  # bytes of one page in each KV buffer, layer by layer
    aux_item_lens: list[int]  # bytes of one metadata slot in each buffer


class Pull(msgspec.Struct, frozen=True, tag=True):
    """Decode -> prefill, per request: the delta that the decode worker lacks."""

    session: str
    room: int
    endpoint: str  # where the pages go
    port: int
    prefix_tokens: int  # tokens of the prompt the decode worker holds already


class PageBatch(msgspec.Struct, frozen=True, tag=True):
    """Prefill -> decode: pages ``[first, first + count)`` of the delta.

    Payload: one frame per KV buffer with ``count`` pages; the last batch of a request also
    brings one frame per metadata buffer.
    """

    room: int
    first: int
    count: int
    last: bool


Message = Register | Pull | PageBatch

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


class MalformedMessageError(ValueError):
    """A peer sent frames that are no message of this protocol version."""


def encode(message: Message) -> list[bytes]:
    """The frames of a message without its payload."""
    return [TAG, _encoder.encode(message)]


def decode(frames: Sequence[Any]) -> tuple[Message, Sequence[Any]]:
    """A message and its payload frames.

    Raises:
        MalformedMessageError: the frames are not of this protocol version.
    """
    if len(frames) < 2 or bytes(frames[0]) != TAG:
        raise MalformedMessageError(f"{len(frames)} frames do not start with {TAG!r}")
    try:
        return _decoder.decode(frames[1]), frames[2:]
    except msgspec.MsgspecError as error:
        raise MalformedMessageError(f"bad header: {error}") from error
