from __future__ import annotations

import json
from typing import Any

import pytest
from folder_parts import TOKENIZER, Build

from ps_sglang.contract.tokenizer import chat_template_digest, tokenizer_digest
from ps_sglang.errors import CheckpointError


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
