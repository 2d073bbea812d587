"""What is moved: KV of SmolLM2-135M in float32, in pages that lie together or anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
import numpy.typing as npt

BUFFERS: Final = 60  # K and V of 30 layers
TOKEN_BYTES: Final = 768  # in each buffer: 3 KV heads x 64 x 4 bytes
POOL_TOKENS: Final = 8192

Pages = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Case:
    """One handoff: `tokens` of a prompt, rounded up to whole pages."""

    tokens: int
    page_size: int
    scattered: bool

    @property
    def pages(self) -> int:
        """How many pages move."""
        return -(-self.tokens // self.page_size)

    @property
    def size(self) -> int:
        """Bytes that move."""
        return self.pages * self.page_size * BUFFERS * TOKEN_BYTES

    def draw(self, random: np.random.Generator) -> Pages:
        """Page numbers in a pool: one run that starts anywhere, or any pages in any order."""
        total = POOL_TOKENS // self.page_size
        if self.scattered:
            return random.permutation(total)[: self.pages].astype(np.int32)
        first = int(random.integers(total - self.pages + 1))
        return np.arange(first, first + self.pages, dtype=np.int32)

    def __str__(self) -> str:
        layout = "scattered" if self.scattered else "contiguous"
        return f"{self.tokens} tokens, page size {self.page_size}, {layout}"


CASES: Final = tuple(
    Case(tokens, page_size, scattered)
    for tokens, page_size, scattered in product((100, 1000, 4000), (1, 16), (False, True))
)
