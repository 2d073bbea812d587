"""What token ids stand for: bytes of the prompt's text."""

from __future__ import annotations

from collections.abc import Sequence


class TokenTexts:
    """The bytes that each token of a vocabulary adds to a text.

    Ids outside of the vocabulary (SGLang pads with such) get bytes that occur in no text.
    """

    def __init__(self, table: Sequence[bytes]) -> None:
        self._table = list(table)

    def of(self, token_ids: Sequence[int], block: int = 1) -> list[bytes]:
        """The bytes of each `block` consecutive tokens; the last tokens may make a shorter one."""
        try:
            # A negative id would be taken from the table's end.
            texts = list(map(self._table.__getitem__, token_ids))
            if token_ids and min(token_ids) < 0:
                raise IndexError
        except IndexError:
            texts = [self._one(token_id) for token_id in token_ids]
        if block == 1:
            return texts
        return [b"".join(texts[start : start + block]) for start in range(0, len(texts), block)]

    def _one(self, token_id: int) -> bytes:
        if 0 <= token_id < len(self._table):
            return self._table[token_id]
        return b"\xff%d\xff" % token_id
