"""Rows of host memory that a manager of SGLang registers by address.

`KVArgs` names each KV buffer (one for K and one for V of every layer) by address, byte length
and bytes per page, and each metadata buffer by address, length and bytes per request slot. The
pools own that memory for the life of the process.

Rows travel packed: those of the first buffer in the order asked for, then of the next. The digest
covers the bytes in that order, so it is the same whether rows were copied, packed, unpacked or
only read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xxhash

from ps_sglang.engine.transfer import row_kernels
from ps_sglang.engine.transfer.row_digest import FIRST_KEY, LINE

Indices = npt.NDArray[np.integer[Any]]
Packed = npt.NDArray[np.uint8]  # [bytes]

_Int64s = npt.NDArray[np.int64]


class HostRows:
    """Several host buffers whose equally numbered rows belong together.

    Every method takes row numbers as an integer array in any order, and raises `ValueError`
    if one is outside the buffers, before anything is read or written. Threads may share it.
    """

    def __init__(
        self, addresses: Sequence[int], lengths: Sequence[int], row_bytes: Sequence[int]
    ) -> None:
        """Work on memory that someone else owns and keeps.

        `addresses` are the starts of the buffers, `lengths` their bytes, and `row_bytes` the bytes
        of one row in each.
        """
        self.row_bytes = list(row_bytes)
        self.row_total = sum(row_bytes)  # bytes of one row over all buffers
        sizes = zip(lengths, row_bytes, strict=True)
        self._rows = min((length // width for length, width in sizes), default=0)
        self._bases = np.array(addresses, dtype=np.int64)
        self._widths = np.array(row_bytes, dtype=np.int64)
        aligned = not np.any(self._bases % LINE) and not np.any(self._widths % LINE)
        self._write = row_kernels.stream if aligned else row_kernels.copy
        self._at = _address(self._bases)
        self._widths_at = _address(self._widths)
        self._offsets = np.cumsum(self._widths) - self._widths  # bytes of a row in earlier buffers

    def gather(self, rows: Indices) -> Packed:
        """A packed copy of the rows, `[len(rows) * row_total]` bytes."""
        numbers = self._checked(rows)
        packed = np.empty(len(numbers) * self.row_total, dtype=np.uint8)
        bases, packed_rows = self._packed(packed, len(numbers))
        self._run(row_kernels.copy, self._at, numbers, _address(bases), packed_rows)
        return packed

    def scatter(self, rows: Indices, packed: Any) -> bytes:
        """Write a packed copy (any buffer of bytes) into the rows; returns its digest, 16 bytes.

        Raises ValueError also if the copy is not as long as the rows need.
        """
        numbers = self._checked(rows)
        bytes_ = np.frombuffer(packed, dtype=np.uint8)
        if bytes_.size != len(numbers) * self.row_total:
            raise ValueError(f"{bytes_.size} bytes, not {len(numbers)} rows x {self.row_total}")
        bases, packed_rows = self._packed(bytes_, len(numbers))
        return self._run(self._write, _address(bases), packed_rows, self._at, numbers)

    def digest(self, rows: Indices) -> bytes:
        """The digest of the rows as they are now, 16 bytes."""
        numbers = self._checked(rows)
        return self._run(row_kernels.digest, self._at, numbers, self._at, numbers)

    def copy_from(self, source: HostRows, source_rows: Indices, rows: Indices) -> bytes:
        """Copy rows of another pool of the same layout; returns their digest, 16 bytes.

        Raises ValueError also if the layouts or the numbers of rows differ.
        """
        numbers, source_numbers = self._checked(rows), source._checked(source_rows)
        if len(numbers) != len(source_numbers):
            raise ValueError(f"{len(source_numbers)} rows to copy into {len(numbers)}")
        if self.row_bytes != source.row_bytes:
            raise ValueError("rows of one layout to copy into another")
        return self._run(self._write, source._at, source_numbers, self._at, numbers)

    def _run(
        self, kernel: row_kernels.Kernel, sources: int, source_rows: _Int64s, targets: int,
        target_rows: _Int64s,
    ) -> bytes:  # fmt: skip
        state = _INITIAL_STATE.copy()
        kernel(
            sources, _address(source_rows), targets, _address(target_rows), self._widths_at,
            len(self._widths), len(source_rows), _address(state),
        )  # fmt: skip
        # The last key tells how much was added.
        return xxhash.xxh3_128_digest(state.data)

    def _checked(self, rows: Indices) -> _Int64s:
        numbers = np.ascontiguousarray(rows, dtype=np.int64)
        # As unsigned numbers, negative ones are far too large.
        if len(numbers) and numbers.view(np.uint64).max() >= self._rows:
            raise ValueError(f"rows {numbers.min()}..{numbers.max()} of {self._rows}")
        return numbers

    def _packed(self, packed: Packed, count: int) -> tuple[_Int64s, _Int64s]:
        """A packed copy as buffers of `count` rows: their addresses, and their row numbers."""
        return _address(packed) + self._offsets * count, np.arange(count, dtype=np.int64)


def _address(array: npt.NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


_INITIAL_STATE: Final = np.frombuffer(bytes(LINE) + FIRST_KEY.tobytes(), dtype=np.uint8)
