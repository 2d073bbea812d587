"""The GPU kernel that copies rows between buffers and digests them as it goes.

One launch moves a batch: all layers of all its pages. Addresses are plain numbers, as a peer's
buffers are no tensors of this process. They are trusted: callers check the row numbers. The digest
is that of `row_digest`, so pages of a GPU and of a host can be compared.

With `TRITON_INTERPRET=1` the kernel runs on a CPU's tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
import triton
import triton.language as tl

from ps_sglang.engine.transfer.row_digest import FIRST_KEY, KEY_STEP, LINE, WORDS

_LINES_AT_A_TIME: Final = 256  # of a row, by one program: 16 KB


@triton.jit  # type: ignore[untyped-decorator]
def _move(
    sources: Any, source_rows: Any, targets: Any, target_rows: Any, lines: Any, lines_before: Any,
    keys: Any, sums: Any, count: Any, STEP: tl.constexpr, WRITE: tl.constexpr, PART: tl.constexpr,
    WORDS: tl.constexpr,
) -> None:  # fmt: skip
    """Copy part of one row of one buffer, and add it to the sums of products and of words."""
    row, buffer = tl.program_id(0), tl.program_id(1)
    in_row = tl.load(lines + buffer)
    line = tl.program_id(2) * PART + tl.arange(0, PART)
    word = tl.arange(0, WORDS)
    inside = (line < in_row)[:, None] & (word >= 0)[None, :]
    place = line[:, None].to(tl.int64) * WORDS + word[None, :]

    row_bytes = in_row * WORDS * 8
    source = tl.load(sources + buffer) + tl.load(source_rows + row) * row_bytes
    value = tl.load(source.to(tl.pointer_type(tl.int64)) + place, mask=inside, other=0)
    if WRITE:
        target = tl.load(targets + buffer) + tl.load(target_rows + row) * row_bytes
        tl.store(target.to(tl.pointer_type(tl.int64)) + place, value, mask=inside)

    number = tl.load(lines_before + buffer) * count + row * in_row + line
    mixed = value ^ (tl.load(keys + word)[None, :] + number[:, None] * STEP)
    product = (mixed & 0xFFFFFFFF) * ((mixed >> 32) & 0xFFFFFFFF)
    tl.atomic_add(sums + word, tl.sum(tl.where(inside, product, 0), 0))
    tl.atomic_add(sums + WORDS + word, tl.sum(value, 0))


class RowLayout:
    """How wide rows are, kept where the kernel reads it."""

    def __init__(self, row_bytes: Sequence[int], device: Any) -> None:
        """Rows of `row_bytes` in each buffer.

        Raises ValueError if a row is not made of whole lines of 64 bytes.
        """
        if odd := sorted({width for width in row_bytes if width % LINE or width == 0}):
            raise ValueError(f"KV pages of {odd} bytes a buffer are not whole lines of {LINE}")
        self._lines = np.array(row_bytes, dtype=np.int64) // LINE
        before = np.cumsum(self._lines) - self._lines
        self._on_device = [
            torch.from_numpy(array).to(device)
            for array in (self._lines, before, FIRST_KEY.astype(np.int64, casting="unsafe"))
        ]

    def line_count(self, rows: int) -> int:
        """Lines of so many rows over all buffers."""
        return rows * int(self._lines.sum())

    def move(
        self, sources: Any, source_rows: Any, targets: Any, target_rows: Any, *, write: bool
    ) -> Any:
        """Launch the kernel on the current stream; returns the sums, int64 `[2, 8]`.

        `sources` and `targets` are the buffers' addresses, `source_rows` and `target_rows` row
        numbers, each an int64 tensor of the device. Without `write` targets are not touched.
        """
        rows = len(source_rows)
        sums = torch.zeros((2, WORDS), dtype=torch.int64, device=source_rows.device)
        parts = -(-int(self._lines.max()) // _LINES_AT_A_TIME)
        _move[(rows, len(self._lines), parts)](
            sources, source_rows, targets, target_rows, *self._on_device, sums, rows,
            STEP=KEY_STEP - 2**64, WRITE=write, PART=_LINES_AT_A_TIME, WORDS=WORDS,
        )  # fmt: skip
        return sums
