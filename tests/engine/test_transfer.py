"""The zmq backend's parts without an engine: messages and host memory."""

from __future__ import annotations

import numpy as np
import pytest

from ps_sglang.engine.compat.srt import KVClassType, TransferBackend
from ps_sglang.engine.transfer import backend, endpoints
from ps_sglang.engine.transfer.memory import HostRows
from ps_sglang.engine.transfer.messages import (
    TAG,
    MalformedMessageError,
    Message,
    PageBatch,
    Pull,
    Register,
    decode,
    encode,
)

MESSAGES: list[Message] = [
    Register(session="h:1", base_fingerprint="ps1:x", page_item_lens=[8, 8], aux_item_lens=[64]),
    Pull(session="h:1", room=2**62, endpoint="10.0.0.1", port=5, prefix_tokens=16),
    PageBatch(room=7, first=0, count=2, last=True),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_round_trip(message: Message) -> None:
    assert decode([*encode(message), b"payload"]) == (message, [b"payload"])


@pytest.mark.parametrize(
    "frames",
    [[], [b""], [TAG], [b"PS_SGLANG/0", encode(MESSAGES[0])[1]], [TAG, b"\xff"], [TAG, b"\x80"]],
)
def test_garbage_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(MalformedMessageError):
        decode(frames)


def rows(*buffers: np.ndarray) -> HostRows:
    """Views on the memory of `buffers`, each `[rows, bytes]`."""
    return HostRows(
        [b.ctypes.data for b in buffers], [b.nbytes for b in buffers], [b.shape[1] for b in buffers]
    )


def test_pages_arrive_in_the_rows_asked_for() -> None:
    random = np.random.default_rng(0)
    source = [random.integers(0, 256, (10, width), dtype=np.uint8) for width in (4, 16)]
    target = [np.zeros((6, width), dtype=np.uint8) for width in (4, 16)]
    frames = rows(*source).gather(np.array([9, 0, 3], dtype=np.int32))
    rows(*target).scatter(np.array([1, 5, 2], dtype=np.int32), [bytes(f.data) for f in frames])
    for sent, got in zip(source, target, strict=True):
        assert (got[[1, 5, 2]] == sent[[9, 0, 3]]).all()
        assert not got[[0, 3, 4]].any()


def test_gathered_pages_are_copies() -> None:
    buffer = np.ones((2, 4), dtype=np.uint8)
    (frame,) = rows(buffer).gather(np.array([0], dtype=np.int32))
    buffer[0] = 7
    assert (frame == 1).all()


@pytest.mark.parametrize("frames", [[], [bytes(8)], [bytes(8), bytes(7)], [bytes(8)] * 3])
def test_truncated_batches_write_nothing(frames: list[bytes]) -> None:
    target = [np.full((4, 4), 5, dtype=np.uint8) for _ in range(2)]
    with pytest.raises(ValueError, match="frame"):
        rows(*target).scatter(np.array([0, 1], dtype=np.int32), frames)
    assert all((buffer == 5).all() for buffer in target)


def test_backend_is_selected_by_name_beside_sglangs_own() -> None:
    from sglang.srt.disaggregation.utils import get_kv_class

    stock = getattr(get_kv_class, "__wrapped__", get_kv_class)
    extended = backend.ExtendedTransferBackend
    assert {b.name for b in TransferBackend} <= {b.name for b in extended}
    assert backend.get_kv_class(stock, extended("zmq"), KVClassType.SENDER) is endpoints.ZmqKVSender
    mooncake = backend.get_kv_class(stock, TransferBackend("mooncake"), KVClassType.SENDER)
    assert mooncake.__name__ == "MooncakeKVSender"
    assert not mooncake.supports_host_tensor_indices, "its CUDA events end a CPU worker"
