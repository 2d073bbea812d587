"""The digest of rows: what host kernels and GPU kernels must agree on.

It is a sum over all lines of 64 bytes in the order in which rows travel packed, so its parts may be
added in any order, on any number of cores. Each of a line's eight words `w` gives the product of
the halves of `w ^ key`, to which its neighbour (the word whose number differs in the last bit) is
added. Keys go up by `KEY_STEP` with each line, so lines that change places change the sum. XXH3
mixes sum and last key at the end.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash

LINE: Final = 64
"""Bytes that are moved and digested at a time: a cache line of most processors."""
WORDS: Final = LINE // 8
KEY_STEP: Final = 0x9E3779B97F4A7C15  # odd, so 2**64 lines have different keys

Words = npt.NDArray[np.uint64]  # [8]

FIRST_KEY: Final[Words] = np.frombuffer(
    b"".join(xxhash.xxh3_64_digest(bytes([word])) for word in range(WORDS)), dtype="<u8"
)


def from_sums(products: Words, words: Words, lines: int) -> bytes:
    """The digest, 16 bytes, of `lines` lines.

    `products` are the sums of the products, and `words` those of the words themselves, all modulo
    2**64.
    """
    total = products + words.reshape(-1, 2)[:, ::-1].ravel()
    key = FIRST_KEY + np.uint64(lines * KEY_STEP % 2**64)
    return xxhash.xxh3_128_digest(np.concatenate((total, key)).astype("<u8").data)
