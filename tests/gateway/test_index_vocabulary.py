"""The texts of tokens against what the tokenizers themselves make of texts."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from ps_sglang.gateway.index.vocabulary import NotAddressable, Vocabulary
from tests.gateway.tokenizer_kinds import KINDS, SPECIAL, with_eos, with_unknowns, word_piece

PARTS = (
    *(
        "The user",
        " ",
        "  ",
        "\n",
        "\t",
        "answers it",
        "x",
        "ÄÖ",
        "cafe\u0301",
        "漢字",
        "\U0001f44d",
    ),
    *("\u212b", "\u00a0", '{"a": 1}', "42", *SPECIAL, "<|assistant|>", "<0x41>", "\u2581", "Ġ"),
)


def _saved(tokenizer: Tokenizer, folder: Path) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_become_the_bytes_of_their_tokens(kind: str, tmp_path: Path) -> None:
    tokenizer = KINDS[kind]()
    vocabulary = Vocabulary.load(_saved(tokenizer, tmp_path))
    source = random.Random(3)
    for special in (True, False):
        for _ in range(300):
            text = "".join(source.choices(PARTS, k=source.randrange(12)))
            ids = tokenizer.encode(text, add_special_tokens=special).ids
            spelled = b"".join(vocabulary.table[one] for one in ids)
            assert vocabulary.encode(text, special=special) == spelled, repr(text)


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_of_a_text_is_in_some_block(kind: str, tmp_path: Path) -> None:
    """Cut anywhere between two tokens, the front part starts the whole: also inside a character."""
    tokenizer = KINDS[kind]()
    vocabulary = Vocabulary.load(_saved(tokenizer, tmp_path))
    text = "The user \U0001f44d asks: cafés, naïve?"
    ids = tokenizer.encode(text).ids
    whole = vocabulary.encode(text, special=True)
    for end in range(len(ids) + 1):
        assert whole.startswith(b"".join(vocabulary.table[one] for one in ids[:end]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (with_unknowns, r"changes texts, such as \"The answer, she"),
        (word_piece, r"decoder \(WordPiece\) loses characters"),
        (with_eos, "tokens behind a text"),
    ],
)
def test_a_tokenizer_that_loses_something_is_refused(
    make: Callable[[], Tokenizer], message: str, tmp_path: Path
) -> None:
    with pytest.raises(NotAddressable, match=message):
        Vocabulary.load(_saved(make(), tmp_path))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAddressable, match=r"tokenizer\.json cannot be read"):
        Vocabulary.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(NotAddressable, match="cannot be read"):
        Vocabulary.load(tmp_path)


def test_half_a_surrogate_pair_does_no_harm(tmp_path: Path) -> None:
    vocabulary = Vocabulary.load(_saved(KINDS["byte level"](), tmp_path))
    assert vocabulary.encode("a\ud800b", special=True) == b"a?b"
