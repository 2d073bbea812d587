"""A KV pool like that of a worker, every page of it written."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.handoff.cases import BUFFERS, POOL_TOKENS, TOKEN_BYTES, Pages
from ps_sglang.engine.transfer import row_kernels
from ps_sglang.engine.transfer.memory import HostRows
from ps_sglang.engine.transfer.shared_pool import SharedMemory

BUFFER_BYTES = POOL_TOKENS * TOKEN_BYTES


class Pool:
    """`BUFFERS` buffers of `POOL_TOKENS` tokens of random bytes in shared memory."""

    def __init__(self, seed: int) -> None:
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(
            SharedMemory(BUFFERS * BUFFER_BYTES).buffer, dtype=np.uint8
        )
        words = self.bytes.view(np.uint64)
        words[:] = np.random.default_rng(seed).integers(1 << 63, size=words.size, dtype=np.uint64)
        self.start = int(self.bytes.ctypes.data)
        self.addresses = [self.start + number * BUFFER_BYTES for number in range(BUFFERS)]
        self.lengths = [BUFFER_BYTES] * BUFFERS

    def rows(self, page_size: int, *, digest: bool = True) -> HostRows:
        """The pool as the transfer code of a worker sees it."""
        kind = HostRows if digest else RowsWithoutDigest
        return kind(self.addresses, self.lengths, row_bytes(page_size))

    def read(self, pages: Pages, page_size: int) -> npt.NDArray[np.uint8]:
        """The bytes of pages, read by other code than what moves them: [buffers, pages, bytes]."""
        return np.ascontiguousarray(self._by_page(page_size)[:, pages])

    def wipe(self, pages: Pages, page_size: int) -> None:
        """Make sure that a page holds what was moved only if it was moved."""
        self._by_page(page_size)[:, pages] = 0

    def _by_page(self, page_size: int) -> npt.NDArray[np.uint8]:
        return self.bytes.reshape(BUFFERS, POOL_TOKENS // page_size, page_size * TOKEN_BYTES)


class RowsWithoutDigest(HostRows):
    """For comparison only: a digest that never looks at the rows."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._write = row_kernels.build(stream=True, digest=False)

    def digest(self, rows: Pages) -> bytes:  # type: ignore[override]
        """The digest of nothing, which is also what this class's copies return."""
        return super().digest(rows[:0])


def row_bytes(page_size: int) -> list[int]:
    """Bytes of a page in each buffer."""
    return [page_size * TOKEN_BYTES] * BUFFERS
