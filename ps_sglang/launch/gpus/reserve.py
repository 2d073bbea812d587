"""What a worker needs beside weights and KV: activations, CUDA graphs, CUDA itself.

The rule is SGLang 0.5.23's own (`arg_groups/memory_hook.py`), with its sizes of chunks and of
decode graphs by a card's memory. It was read, and not measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ps_sglang.launch.spec import Role

_MIB: Final = 1 << 20
_TABLE: Final = (  # below how many MiB: chunk, graphs with tp below 4, graphs from 4 on
    (20 << 10, 2048, 8, 8),
    (35 << 10, 4096, 48, 160),
    (60 << 10, 4096, 32, 160),
    (160 << 10, 8192, 256, 512),
)
_METADATA: Final = 512
_PER_TOKEN: Final = 1.5
_LEAST_TOKENS: Final = 2048
_PER_RANK: Final = 128
_PER_DECODE_GRAPH: Final = 2
_PER_PREFILL_GRAPH: Final = 8
_LARGE_CARD: Final = 60 << 10
_LARGE_RESERVE: Final = 10 << 10
CONTEXT_BYTES: Final = 512 * _MIB
"""CUDA's own for a process; it is taken before SGLang looks what is free, so not in its rule."""


@dataclass(frozen=True)
class BatchSizes:
    """The most tokens of one prefill step, and the most requests of one decode graph."""

    chunk: int
    decode_graph: int


SMALL: Final = BatchSizes(2048, 32)
"""For workers that share a GPU, or would not fit with what SGLang takes by default."""
_LARGEST: Final = BatchSizes(16384, 512)


def usual_sizes(total_bytes: int, tp: int) -> BatchSizes:
    """SGLang's defaults on a card of so much memory."""
    for limit, chunk, few, many in _TABLE:
        if total_bytes < limit * _MIB:
            return BatchSizes(chunk, few if tp < 4 else many)
    return _LARGEST


def reserve_bytes(
    role: Role, sizes: BatchSizes, tp: int, running: int | None, total_bytes: int, *, alone: bool
) -> int:
    """Bytes on each GPU; `running` is the user's limit of requests at once.

    SGLang leaves at least 10 GiB of a card with more than 60, which a worker `alone` there does,
    too, if it has SGLang's sizes.
    """
    tokens = (running or sizes.decode_graph) if role is Role.DECODE else sizes.chunk
    mib = _METADATA + _PER_TOKEN * max(tokens, _LEAST_TOKENS) + _PER_RANK * tp
    if role is not Role.PREFILL:
        mib += _PER_DECODE_GRAPH * sizes.decode_graph
    if role is not Role.DECODE:
        mib += _PER_PREFILL_GRAPH * _prefill_graphs(sizes.chunk)
    if alone and total_bytes > _LARGE_CARD * _MIB:
        mib = max(mib, _LARGE_RESERVE)
    return int(mib * _MIB) + CONTEXT_BYTES


def _prefill_graphs(chunk: int) -> int:
    """How many sizes SGLang captures."""
    steps = (
        (4, 32, 4), (48, 256, 16), (288, 512, 32), (576, 1024, 64), (1280, 4096, 256),
        (4608, chunk, 512),
    )  # fmt: skip
    return sum(size <= chunk for low, high, step in steps for size in range(low, high + 1, step))
