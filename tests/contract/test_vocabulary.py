"""A tokenizer with a token that its model has no embedding for."""

from __future__ import annotations

from typing import Any

import pytest

from ps_sglang.contract import check_cluster, model_facts
from ps_sglang.contract.vocabulary import require_vocabulary
from ps_sglang.errors import CheckpointError, ContractError
from tests.contract.folder_parts import TOKENIZER, Build, write_json

PAD = {"id": 12, "content": "<|pad|>", "special": True}
ADDED = {"added_tokens": [*TOKENIZER["added_tokens"], PAD]}
WHY = r"the tokenizer has token ids up to 12, the model a vocabulary of 12, .*'<\|pad\|>' = 12"


def test_a_base_that_cannot_read_its_own_tokenizer(build: Build) -> None:
    base, decoder = build("base", tokenizer=ADDED), build("x", tokenizer=ADDED)
    with pytest.raises(CheckpointError, match=WHY):
        check_cluster(base, {"x": decoder}, allow_unverified=True)


def test_a_decoder_with_a_token_more(build: Build) -> None:
    with pytest.raises(ContractError, match=WHY):
        check_cluster(build("base"), {"x": build("x", tokenizer=ADDED)}, allow_unverified=True)


@pytest.mark.parametrize(
    "parts",
    [
        {"tokenizer": {"model": {"type": "BPE", "vocab": {"<|pad|>": 12}, "merges": []}}},
        {"tokenizer": {"model": {"vocab": [["a", 0.0]] * 12 + [["<|pad|>", 0.0]]}}},  # Unigram
        {"tokenizer_config": {"added_tokens_decoder": {"12": {"content": "<|pad|>"}}}},
    ],
)  # fmt: skip
def test_wherever_the_token_is_written(build: Build, parts: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=WHY):
        require_vocabulary(build("x", **parts))


def test_other_files(build: Build) -> None:
    folder = build("x")
    require_vocabulary(folder)
    write_json(folder / "added_tokens.json", {"<|pad|>": 12})
    with pytest.raises(CheckpointError, match=WHY):
        require_vocabulary(folder)


def test_a_worker_that_would_join(build: Build) -> None:
    with pytest.raises(CheckpointError, match=WHY):
        model_facts(build("x", tokenizer=ADDED))
