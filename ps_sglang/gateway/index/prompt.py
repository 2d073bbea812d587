"""A prompt as the index sees it."""

from __future__ import annotations

from functools import cached_property
from typing import Final, Literal, get_args

import xxhash

Kind = Literal["text", "tokens", "chat"]
"""How a client gave a prompt."""
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

BLOCK_BYTES = 512


class Prompt:
    """A prompt by the bytes that its tokens stand for: equal prefixes have equal bytes.

    `salt` is its tenant, with whom alone it shares pages; `kind` is how it was given, `tokens` its
    length where it was given as token ids. `exact`: the bytes are those of its tokens. Otherwise (a
    chat whose text is not known, a tokenizer that changes texts) they only tell prompts apart, and
    what workers hold of it is estimated.
    """

    def __init__(
        self,
        text: bytes,
        salt: str = "",
        tokens: int | None = None,
        *,
        kind: Kind = "text",
        exact: bool = True,
    ) -> None:
        self.text = text
        self.salt = salt
        self.tokens = tokens
        self.kind = kind
        self.exact = exact

    @cached_property
    def blocks(self) -> tuple[int, ...]:
        """Chained hashes of every BLOCK_BYTES bytes and of the rest, for estimates.

        Equal hashes mean equal prefixes up to there, and the same tenant.
        """
        chained = xxhash.xxh3_64_intdigest(self.salt.encode(), seed=int(self.exact))
        hashes = []
        for start in range(0, len(self.text), BLOCK_BYTES):
            block = self.text[start : start + BLOCK_BYTES]
            chained = xxhash.xxh3_64_intdigest(block, seed=chained)
            hashes.append(chained)
        return tuple(hashes)

    @classmethod
    def of_blocks(cls, blocks: tuple[int, ...]) -> Prompt:
        """A prompt of which nothing but its blocks is known: it can only be estimated."""
        prompt = cls(b"", exact=False)
        prompt.__dict__["blocks"] = blocks  # where `cached_property` looks
        return prompt

    def blocks_bytes(self, count: int) -> int:
        """How many bytes the first `count` blocks have."""
        return min(count * BLOCK_BYTES, len(self.text))
