"""Rows of host memory that a manager of SGLang registers by address.

``KVArgs`` names each KV buffer (one for K and one for V of every layer) by address, byte length
and bytes per page, and each metadata buffer by address, length and bytes per request slot. The
pools own that memory for the life of the process.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.uint8]  # [rows, bytes of a row]
Indices = npt.NDArray[np.int32]


class HostRows:
    """Several host buffers whose equally numbered rows belong together."""

    def __init__(
        self, addresses: Sequence[int], lengths: Sequence[int], row_bytes: Sequence[int]
    ) -> None:
        """Views on memory that someone else owns.

        Args:
            addresses: start of each buffer.
            lengths: bytes of each buffer.
            row_bytes: bytes of one row in each buffer.
        """
        self.row_bytes = list(row_bytes)
        self._buffers: list[Rows] = [
            _view(address, length, width)
            for address, length, width in zip(addresses, lengths, row_bytes, strict=True)
        ]

    def gather(self, rows: Indices) -> list[Rows]:
        """Copies of the rows, one contiguous ``[len(rows), row_bytes]`` array per buffer."""
        return [buffer[rows] for buffer in self._buffers]

    def scatter(self, rows: Indices, frames: Sequence[Any]) -> None:
        """Write one frame per buffer into the rows.

        Raises:
            ValueError: the frames are not as many, or not as long, as the rows need.
        """
        if len(frames) != len(self._buffers):
            raise ValueError(f"{len(frames)} frames for {len(self._buffers)} buffers")
        sources = [np.frombuffer(frame, dtype=np.uint8) for frame in frames]
        for number, (source, width) in enumerate(zip(sources, self.row_bytes, strict=True)):
            if source.size != len(rows) * width:
                raise ValueError(
                    f"frame {number} has {source.size} bytes, not {len(rows)} x {width}"
                )
        for buffer, source, width in zip(self._buffers, sources, self.row_bytes, strict=True):
            buffer[rows] = source.reshape(len(rows), width)


def _view(address: int, length: int, width: int) -> Rows:
    memory = memoryview((ctypes.c_uint8 * length).from_address(address))
    rows = length // width
    return np.frombuffer(memory, dtype=np.uint8, count=rows * width).reshape(rows, width)
