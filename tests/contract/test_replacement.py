"""What may replace the weights of a running decode worker, and what workers tell of themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from ps_sglang.contract import (
    Manifest,
    base_fingerprint,
    check_replacement,
    model_facts,
    read_manifest,
    write_manifest,
)
from ps_sglang.contract.manifest import BaseReference, Training
from ps_sglang.contract.tokenizer import chat_template_digest, tokenizer_digest
from ps_sglang.errors import CheckpointError, ContractError
from tests.contract.folder_parts import Build, tensors, write_json

HEAD = {"lm_head.weight": np.zeros((12, 8), np.float32)}


@pytest.fixture
def base(build: Build) -> Path:
    return build("base")


@pytest.fixture
def trained(build: Build, base: Path) -> Any:
    """`trained(name, ...)`: a decoder with the manifest of one trained on `base`."""

    def make(name: str, **parts: Any) -> Path:
        folder = build(name, **{"weights": tensors(seed=len(name)), **parts})
        reference = BaseReference(name="base", fingerprint=base_fingerprint(base))
        manifest = Manifest(
            base=reference,
            tokenizer=tokenizer_digest(base),
            chat_template=chat_template_digest(base),
            kv_cache_dtype="float32",
            share_ratio=1.0,
            training=Training(recipe="test"),
        )
        write_manifest(folder, manifest)
        return folder

    return make


def check(base: Path, current: Path, replacement: Path, **options: bool) -> None:
    options = {"allow_unverified": False, **options}
    check_replacement(current, replacement, base_fingerprint(base), **options)


def refused(base: Path, current: Path, replacement: Path) -> tuple[str, ...]:
    with pytest.raises(ContractError) as caught:
        check(base, current, replacement)
    return caught.value.differences


def test_another_training_of_the_same_base(trained: Any, base: Path) -> None:
    check(base, trained("v1"), trained("v1.1"))


def test_another_base(trained: Any, base: Path, build: Build) -> None:
    other = build("other", weights=tensors(seed=9))
    (row,) = refused(other, trained("v1"), trained("v1.1"))
    assert row.startswith(f"v1.1: base fingerprint: base {base_fingerprint(other)}, decoder ps1:")


def test_every_difference_at_once(trained: Any, base: Path) -> None:
    misfit = trained(
        "misfit",
        config={"num_hidden_layers": 3, "eos_token_id": 7},
        tokenizer_config={"chat_template": "other"},
    )
    rows = "\n".join(refused(base, trained("v1"), misfit))
    for item in ("layers: base 2", "chat template: base", "eos_token_id: base None, decoder 7"):
        assert item in rows


@pytest.mark.parametrize(
    "config", [{"tie_word_embeddings": True}, {"eos_token_id": [1, 2]}, {"quantization_config": {}}]
)
def test_what_a_running_worker_does_not_read_again(
    trained: Any, base: Path, config: dict[str, Any]
) -> None:
    """The contract leaves these open, as a worker that starts with them reads them."""
    (item,) = config
    weights = tensors(seed=3) | HEAD
    current, other = trained("v1", weights=weights), trained("v1.1", config=config, weights=weights)
    rows = refused(base, current, other)
    assert any(row.startswith(f"v1.1: {item}: base None, decoder ") for row in rows)


def test_a_generation_config_is_fixed(trained: Any, base: Path) -> None:
    current, other = trained("v1"), trained("v1.1")
    write_json(current / "generation_config.json", {"temperature": 0.5, "transformers_version": 1})
    write_json(other / "generation_config.json", {"temperature": 0.5, "transformers_version": 2})
    check(base, current, other)
    write_json(other / "generation_config.json", {"temperature": 0.7})
    (row,) = refused(base, current, other)
    assert row == "v1.1: generation config: temperature: base 0.5, decoder 0.7"


def test_parsers_stay_those_that_the_worker_was_started_with(trained: Any, base: Path) -> None:
    current, other = trained("v1"), trained("v1.1")
    manifest = read_manifest(other)
    assert manifest is not None
    write_manifest(other, msgspec.structs.replace(manifest, tool_call_parser="hermes"))
    (row,) = refused(base, current, other)
    assert row == "v1.1: tool call parser: base None, decoder hermes"
    check(base, other, other)


@pytest.mark.parametrize("stored_in", ["current", "replacement"])
def test_a_head_of_its_own_is_stored_in_both(trained: Any, base: Path, stored_in: str) -> None:
    """A worker would go on with the old head, or the new one would be dropped."""
    current = trained("v1", weights=tensors() | (HEAD if stored_in == "current" else {}))
    other = trained("v1.1", weights=tensors() | (HEAD if stored_in == "replacement" else {}))
    (row,) = refused(base, current, other)
    assert "lm_head.weight: base" in row


def test_a_tied_head_may_be_stored_or_not(trained: Any, base: Path) -> None:
    tied = {"config": {"tie_word_embeddings": True}}
    current, other = trained("v1", **tied), trained("v1.1", **tied, weights=tensors() | HEAD)
    check(base, current, other)
    check(base, other, current)


def test_no_manifest(trained: Any, base: Path, build: Build) -> None:
    current, unsigned = trained("v1"), build("unsigned", weights=tensors(seed=5))
    (row,) = refused(base, current, unsigned)
    assert "prefillshare.json" in row
    check(base, current, unsigned, allow_unverified=True)


def test_nothing_there(trained: Any, base: Path, tmp_path: Path) -> None:
    (row,) = refused(base, trained("v1"), tmp_path / "v2")
    assert "not a usable checkpoint" in row
    with pytest.raises(CheckpointError):
        check(base, tmp_path / "v0", trained("v1.1"))


def test_models_of_a_cluster_have_their_facts_in_common(trained: Any, base: Path) -> None:
    assert model_facts(base) == model_facts(trained("v1"))
    other = model_facts(trained("wide", config={"num_key_value_heads": 4}))
    assert {k for k, v in other.items() if v != model_facts(base)[k]} == {"kv heads"}
