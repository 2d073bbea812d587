"""Merging an adapter without torch: the same weights as peft makes, on its own base only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from ps_sglang.contract import (
    Manifest,
    base_fingerprint,
    check_cluster,
    read_manifest,
    write_manifest,
)
from ps_sglang.contract.manifest import BaseReference, Training
from ps_sglang.contract.tokenizer import chat_template_digest, tokenizer_digest
from ps_sglang.errors import CheckpointError
from ps_sglang.models import NamedModel
from ps_sglang.models.adapter import write_adapted
from ps_sglang.training.train.export import merge_adapter


@pytest.fixture(scope="module")
def adapter(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float16 and random, as peft saves it, with its manifest."""
    folder = tmp_path_factory.mktemp("adapter")
    model = AutoModelForCausalLM.from_pretrained(tiny["base"], dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM")
    lora = get_peft_model(model, config)
    torch.manual_seed(0)
    for name, weights in lora.named_parameters():
        if "lora_" in name:
            weights.data = torch.randn_like(weights) / 8
    lora.half().save_pretrained(folder, save_embedding_layers=False)
    manifest = Manifest(
        base=BaseReference(name="tiny", fingerprint=base_fingerprint(tiny["base"])),
        tokenizer=tokenizer_digest(tiny["base"]),
        chat_template=chat_template_digest(tiny["base"]),
        kv_cache_dtype="float32",
        share_ratio=1.0,
        training=Training(recipe="none: random"),
    )
    write_manifest(folder, manifest)
    return folder


def test_weights_are_those_that_peft_merges(
    tiny: dict[str, Path], adapter: Path, tmp_path: Path
) -> None:
    write_adapted(tiny["base"], adapter, tmp_path / "ours")
    merge_adapter(NamedModel("tiny", tiny["base"]), adapter, tmp_path / "peft")
    ours, peft, base = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "ours", tmp_path / "peft", tiny["base"])
    )
    assert ours.keys() == peft.keys() == base.keys()
    for name, weights in ours.items():
        np.testing.assert_allclose(weights, peft[name], rtol=0, atol=1e-6, err_msg=name)
    changed = {name for name in base if not np.array_equal(ours[name], base[name])}
    assert changed == {name for name in base if "_proj" in name}
    assert max(np.abs(ours[name] - base[name]).max() for name in changed) > 0.1


def test_merged_decoder_fits_its_base(tiny: dict[str, Path], adapter: Path, tmp_path: Path) -> None:
    write_adapted(tiny["base"], adapter, tmp_path)
    (report,) = check_cluster(tiny["base"], {"x": tmp_path}, allow_unverified=False)
    assert report.manifest == read_manifest(adapter)


def test_another_base_is_refused(tiny: dict[str, Path], adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"was trained on ps1:[0-9a-f]{64}, not on ps1:"):
        write_adapted(tiny["a"], adapter, tmp_path)
    assert list(tmp_path.iterdir()) == []
