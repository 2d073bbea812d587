from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from ps_sglang.contract.tokenizer import (
    chat_template_digest,
    tokenizer_differences,
    tokenizer_digest,
)
from ps_sglang.errors import CheckpointError
from tests.contract.folder_parts import TOKENIZER, Build, write_json


def with_model(**changes: Any) -> dict[str, Any]:
    return {"model": TOKENIZER["model"] | changes}


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"padding": {"strategy": "BatchLongest"}, "truncation": {"max_length": 8}},
        with_model(merges=["a b"]),
        with_model(vocab={"ab": 3, "b": 2, "a": 1, "<s>": 0}),
    ],
)
def test_what_does_not_change_tokens_does_not_count(
    build: Build, tokenizer: dict[str, Any]
) -> None:
    other = build("other", tokenizer=tokenizer)
    text = json.dumps(json.loads((other / "tokenizer.json").read_text()), indent=3)
    (other / "tokenizer.json").write_text(text)
    assert tokenizer_digest(other) == tokenizer_digest(build("one"))


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer": with_model(vocab={"<s>": 0, "a": 2, "b": 1, "ab": 3})},
        {"tokenizer": with_model(merges=[])},
        {"tokenizer": {"pre_tokenizer": {"type": "ByteLevel"}}},
        {"tokenizer": {"added_tokens": []}},
        {"tokenizer_config": {"bos_token": "a"}},
        {"tokenizer_config": {"add_bos_token": True}},
    ],
)
def test_what_changes_tokens_counts(build: Build, changes: dict[str, Any]) -> None:
    assert tokenizer_digest(build("other", **changes)) != tokenizer_digest(build("one"))


def test_two_ways_to_write_a_special_token(build: Build) -> None:
    other = build("other", tokenizer_config={"bos_token": {"content": "<s>", "lstrip": False}})
    assert tokenizer_digest(other) == tokenizer_digest(build("one"))


def test_sentencepiece_only(build: Build) -> None:
    one, other, third = build("one"), build("other"), build("third")
    for folder, content in ((one, b"x"), (other, b"x"), (third, b"y")):
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").write_bytes(content)
    assert tokenizer_digest(one) == tokenizer_digest(other) != tokenizer_digest(third)


def test_no_tokenizer(build: Build) -> None:
    folder = build("one")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="one has no tokenizer"):
        tokenizer_digest(folder)


def test_template_in_either_place(build: Build) -> None:
    inside, beside = build("inside"), build("beside", tokenizer_config={"chat_template": None})
    (beside / "chat_template.jinja").write_text("{{ messages }}\n")
    assert chat_template_digest(inside) == chat_template_digest(beside)


def test_named_templates(build: Build) -> None:
    named = [{"name": "default", "template": "{{ messages }}"}]
    only_default = build("named", tokenizer_config={"chat_template": named})
    assert chat_template_digest(only_default) == chat_template_digest(build("one"))
    named.append({"name": "tool_use", "template": "{{ tools }}"})
    more = build("more", tokenizer_config={"chat_template": named})
    assert chat_template_digest(more) != chat_template_digest(only_default)


def test_jinja_file_wins(build: Build) -> None:
    folder = build("both")
    (folder / "chat_template.jinja").write_text("other")
    assert chat_template_digest(folder) != chat_template_digest(build("one"))


def test_no_template(build: Build) -> None:
    assert chat_template_digest(build("one", tokenizer_config={"chat_template": None})) is None


def test_a_post_processor_that_adds_nothing(build: Build) -> None:
    """What transformers 5 writes where there was none; one that adds a token counts."""
    piece = [{"Sequence": {"id": "A", "type_id": 0}}]
    second = [{"Sequence": {"id": "B", "type_id": 1}}]
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    empty = {
        "type": "TemplateProcessing",
        "single": piece,
        "pair": piece + second,
        "special_tokens": {},
    }
    adds = empty | {
        "single": [start, *piece],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    one = build("one")
    assert tokenizer_digest(build("a", tokenizer={"post_processor": empty})) == tokenizer_digest(
        one
    )
    assert tokenizer_digest(build("b", tokenizer={"post_processor": adds})) != tokenizer_digest(one)


def byte_level(folder: Path, **changes: Any) -> Path:
    """A tokenizer as models have it, with `changes` to its file."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(  # type: ignore[no-untyped-call]
        vocab_size=300,
        special_tokens=["<s>", "<e>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat and the hat, the mat of 2026 2026"] * 9, trainer)
    folder.mkdir()
    write_json(folder / "tokenizer.json", json.loads(tokenizer.to_str()) | changes)
    named = {"bos_token": "<s>", "eos_token": "<e>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    write_json(folder / "tokenizer_config.json", config)
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        # What GPT-2, Qwen and Llama have: it only moves offsets.
        {"post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False,
                            "use_regex": True}},
    ],
)  # fmt: skip
def test_saved_again_by_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    one = byte_level(tmp_path / "one", **changes)
    AutoTokenizer.from_pretrained(one).save_pretrained(tmp_path / "again")
    assert tokenizer_digest(tmp_path / "again") == tokenizer_digest(one)
    assert tokenizer_differences(one, tmp_path / "again") == ""


def test_one_way_of_splitting_in_another_place(tmp_path: Path) -> None:
    """The same texts fall into the same tokens, whichever step does it."""
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    digits = {"type": "Digits", "individual_digits": True}
    pattern = {"Regex": r"\p{N}"}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}

    def split_by(name: str, *steps: dict[str, Any]) -> str:
        sequence = {"type": "Sequence", "pretokenizers": [*steps, level]}
        return tokenizer_digest(byte_level(tmp_path / name, pre_tokenizer=sequence))

    assert split_by("a", digits) == split_by("b", split)
    assert split_by("c") == tokenizer_digest(byte_level(tmp_path / "d")) != split_by("e", digits)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "normalizer"),
        ({"normalizer": {"type": "NFKC"}}, "normalizer"),
        ({"normalizer": {"type": "Strip", "strip_left": True, "strip_right": False}}, "normalizer"),
        ({"normalizer": {"type": "Replace", "pattern": {"String": "the"}, "content": "a"}},
         "normalizer"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                            "use_regex": True}}, "pre-tokenizer"),
        ({"decoder": None}, "decoder"),
        # Of several tokens together only.
        ({"decoder": {"type": "Sequence", "decoders": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
             "use_regex": True},
            {"type": "Replace", "pattern": {"String": "\U0001f600"}, "content": ":)"}]}},
         "decoder"),
        ({"post_processor": {"type": "RobertaProcessing", "sep": ["<e>", 1], "cls": ["<s>", 0],
                             "trim_offsets": True, "add_prefix_space": False}}, "post-processor"),
    ],
)  # fmt: skip
def test_the_part_that_differs_is_named(tmp_path: Path, changes: dict[str, Any], part: str) -> None:
    one, other = byte_level(tmp_path / "one"), byte_level(tmp_path / "other", **changes)
    assert tokenizer_digest(one) != tokenizer_digest(other)
    assert tokenizer_differences(one, other) == part
    # Not what is written differently and does the same.
    moves = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    moved = byte_level(tmp_path / "moved", post_processor=moves)
    assert tokenizer_differences(moved, other) == part


def test_parts_that_are_data_are_named_with_what_differs(tmp_path: Path, build: Build) -> None:
    one = byte_level(tmp_path / "one")
    tokenizer = json.loads((one / "tokenizer.json").read_text())
    added = [
        *tokenizer["added_tokens"],
        tokenizer["added_tokens"][1] | {"id": 300, "content": "<x>"},
    ]
    assert tokenizer_differences(one, byte_level(tmp_path / "a", added_tokens=added)) == (
        "added tokens (<x>: None and [300, True])"
    )
    stripping = [token | {"lstrip": True} for token in tokenizer["added_tokens"]]
    assert tokenizer_differences(one, byte_level(tmp_path / "b", added_tokens=stripping)) == (
        "added tokens' flags (<s>: [False, False, False, False, True] and "
        "[False, True, False, False, True] and 1 more)"
    )
    other = build("other", tokenizer=with_model(merges=[]), tokenizer_config={"eos_token": "a"})
    assert tokenizer_differences(build("plain"), other) == (
        "merges (1 and 0 of them), special tokens (eos_token: '<s>' and 'a')"
    )


def test_settings_count_where_engines_honour_them(build: Build) -> None:
    """Llama's classes add a first token unless told not to; others leave it to the file."""

    def with_class(name: str, **config: Any) -> str:
        return tokenizer_digest(
            build(name, tokenizer_config={"tokenizer_class": name.split("-")[0], **config})
        )

    llama = with_class("LlamaTokenizerFast")
    assert with_class("LlamaTokenizer", add_bos_token=True) == llama
    assert with_class("LlamaTokenizer-without", add_bos_token=False) != llama
    plain = with_class("TokenizersBackend")
    assert with_class("PreTrainedTokenizerFast", add_bos_token=True) == plain
