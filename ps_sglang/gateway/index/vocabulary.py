"""A tokenizer seen from its texts: which bytes each token stands for, and which a prompt becomes.

Read from `tokenizer.json`. Most tokenizers lose nothing: the bytes of a prompt's tokens, one after
the other, are the prompt's. Others normalize it (NFC) or put a space before it. Which of these
rules a tokenizer follows is found by encoding probes; where none holds, blocks cannot be addressed
by text, and `NotAddressable` says why.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

METASPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PROBES = (
    "The answer, she said:  it's 42!\n\n\tdef f(x):\n        return x",
    "  two spaces before, one after ",
    "\nline",
    "Größe, naïve cafe\u0301, \u00c5 \u212b, 漢字かな 한국어, العربية",
    "\U0001f44d\U0001f3fd, \u200b|\u00a0|\ufb01|\u2581",
    "x",
    'def total(values): # {"name": "total", "value": -1.25e-3}',
)

Rule = Callable[[str], str]


class NotAddressable(ValueError):
    """Texts do not say which tokens a prompt has; the message says why."""


class Vocabulary:
    """The bytes of each token id, and of prompts.

    `table[id]` are the bytes of one token. `encode` gives the bytes of a text's tokens; with
    `special` also what the tokenizer puts before every text by itself (a BOS token).
    """

    def __init__(self, table: Sequence[bytes], rule: Rule, prefix: bytes) -> None:
        self.table = tuple(table)
        self._rule = rule
        self._prefix = prefix

    @classmethod
    def load(cls, folder: Path) -> Vocabulary:
        """Read the tokenizer in `folder`; raises NotAddressable."""
        path = folder / "tokenizer.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            tokenizer = Tokenizer.from_file(str(path))
        # `tokenizers` raises bare exceptions.
        except Exception as error:
            raise NotAddressable(f"{path} cannot be read: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        table = _table(content, tokenizer.get_vocab_size(with_added_tokens=True), tokenizer)
        rule = _find_rule(content, tokenizer, table)
        prefix = _joined(table, tokenizer.encode("").ids)
        encoded = _joined(table, tokenizer.encode("x").ids)
        if encoded != prefix + rule("x").encode():
            raise NotAddressable("the tokenizer puts tokens behind a text, not only before it")
        return cls(table, rule, prefix)

    def encode(self, text: str, *, special: bool) -> bytes:
        """The bytes that the tokens of `text` stand for."""
        # JSON may hold half a surrogate pair, which has no bytes.
        encoded = self._rule(text).encode("utf-8", "replace")
        return self._prefix + encoded if special else encoded


def _joined(table: Sequence[bytes], ids: Sequence[int]) -> bytes:
    return b"".join([table[token_id] for token_id in ids])


def _table(content: dict[str, Any], size: int, tokenizer: Tokenizer) -> list[bytes]:
    kinds = set(_kinds(content.get("decoder")))
    if "ByteLevel" in kinds:
        to_bytes = _from_byte_level
    elif kinds & {"Metaspace", "ByteFallback"}:
        to_bytes = _from_metaspace
    else:
        raise NotAddressable(f"its decoder ({', '.join(sorted(kinds)) or 'none'}) loses characters")
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    table = [b""] * max(size, 1 + max(vocabulary.values(), default=0))
    for token, number in vocabulary.items():
        table[number] = to_bytes(token)
    for added in content.get("added_tokens") or ():
        table[added["id"]] = added["content"].encode()
    return table


def _kinds(part: Any) -> Iterator[str]:
    """The types in a part of a tokenizer, which may be a sequence."""
    if isinstance(part, dict):
        yield part["type"]
        for key in ("decoders", "normalizers"):
            for inner in part.get(key) or ():
                yield from _kinds(inner)


def _byte_level_alphabet() -> dict[str, int]:
    """Byte-level BPE writes every byte as a printable character: itself, or one from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }


_ALPHABET = _byte_level_alphabet()


def _from_byte_level(token: str) -> bytes:
    try:
        return bytes([_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode()


def _from_metaspace(token: str) -> bytes:
    if byte := _BYTE.fullmatch(token):
        return bytes([int(byte[1], 16)])
    return token.replace(METASPACE, " ").encode()


def _find_rule(content: dict[str, Any], tokenizer: Tokenizer, table: Sequence[bytes]) -> Rule:
    """The cheapest rule that gives the texts of all probes."""
    probes = [*_PROBES, *_with_added_tokens(content)]
    expected = [
        _joined(table, tokenizer.encode(probe, add_special_tokens=False).ids) for probe in probes
    ]
    failed: list[str] = []
    for rule in _rules(content, tokenizer):
        actual = [rule(probe).encode() for probe in probes]
        if actual == expected:
            return rule
        failed = failed or [p for p, f, w in zip(probes, actual, expected, strict=True) if f != w]
    raise NotAddressable(f"it changes texts, such as {failed[0]!r}, in a way that is not known")


def _with_added_tokens(content: dict[str, Any]) -> Iterator[str]:
    for added in (content.get("added_tokens") or ())[:8]:
        token = added["content"]
        yield f"{token}user\n hello {token}\nbye{token}"
        yield f" a{token} b"


def _rules(content: dict[str, Any], tokenizer: Tokenizer) -> Iterator[Rule]:
    pieces = _Pieces(content.get("added_tokens") or ())
    for normalize in _normalizers(content, tokenizer):
        for lead in (_as_it_is, _with_space, _with_one_space):
            yield _whole(normalize, lead)
        for lead in (_as_it_is, _with_space, _with_one_space):
            yield pieces.rule(normalize, lead, first_only=False)
            yield pieces.rule(normalize, lead, first_only=True)


def _normalizers(content: dict[str, Any], tokenizer: Tokenizer) -> Iterator[Rule]:
    yield _as_it_is
    yield _spaces
    kinds = list(_kinds(content.get("normalizer")))
    if "NFC" in kinds:
        yield lambda text: unicodedata.normalize("NFC", text)
    if "NFKC" in kinds:
        yield lambda text: unicodedata.normalize("NFKC", text)
    normalizer = tokenizer.normalizer
    if normalizer is not None:
        # Exact, but a hundred times slower than Python's own.
        yield normalizer.normalize_str
        yield lambda text: _spaces(normalizer.normalize_str(text))


def _spaces(text: str) -> str:
    return text.replace(METASPACE, " ")


def _as_it_is(text: str) -> str:
    return text


def _with_space(text: str) -> str:
    return " " + text if text else text


def _with_one_space(text: str) -> str:
    return text if text.startswith(" ") else _with_space(text)


def _whole(normalize: Rule, lead: Rule) -> Rule:
    if lead is _as_it_is:
        return normalize
    return lambda text: lead(normalize(text))


class _Pieces:
    """Rules for what lies between added tokens, which are taken out before all else."""

    def __init__(self, added: Sequence[dict[str, Any]]) -> None:
        tokens = sorted(
            (token["content"] for token in added if token["content"]), key=len, reverse=True
        )
        self._strips_left = {token["content"] for token in added if token["lstrip"]}
        self._strips_right = {token["content"] for token in added if token["rstrip"]}
        self._split = re.compile(f"({'|'.join(map(re.escape, tokens))})") if tokens else None

    def rule(self, normalize: Rule, lead: Rule, *, first_only: bool) -> Rule:
        """Normalize each piece; put `lead` before each, or only before one that comes first."""

        def apply(text: str) -> str:
            parts = self._split.split(text) if self._split else [text]
            for place in range(0, len(parts), 2):
                piece = parts[place]
                if place and parts[place - 1] in self._strips_right:
                    piece = piece.lstrip()
                if place + 1 < len(parts) and parts[place + 1] in self._strips_left:
                    piece = piece.rstrip()
                piece = normalize(piece)
                parts[place] = piece if first_only and place else lead(piece)
            return "".join(parts)

        return apply
