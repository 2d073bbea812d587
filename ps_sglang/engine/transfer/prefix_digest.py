"""What both workers of a handoff must agree on: the token ids of the base prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash


@dataclass(frozen=True)
class PrefixDigest:
    """A base prefix: its number of tokens, and the xxh3-128 of their ids (little-endian int32)."""

    tokens: int
    digest: bytes

    @classmethod
    def of(cls, token_ids: Sequence[int]) -> PrefixDigest:
        """The digest of token ids (a list or an `array`)."""
        ids = np.asarray(token_ids, dtype="<i4")
        return cls(len(ids), xxhash.xxh3_128_digest(ids.data))

    def __str__(self) -> str:
        return f"{self.tokens} tokens (digest {self.digest.hex()[:8]})"
