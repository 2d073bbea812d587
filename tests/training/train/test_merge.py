"""`ps-sglang merge`: the whole model says what the adapter says; errors leave nothing behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ps_sglang.cli import main
from ps_sglang.contract import MANIFEST_FILE, check_cluster, read_manifest
from ps_sglang.errors import ContractError
from tests.support.adapters import make_adapter


def merge(tiny: dict[str, Path], adapter: Path, out: Path, *flags: str) -> int:
    words = ["merge", str(adapter), "--base", str(tiny["base"]), "--to", str(out), *flags]
    return main(words)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 5}},
        {"modules_to_save": ["lm_head"]},
    ],
    ids=lambda config: next(iter(config), "plain"),
)
def test_the_way_out_of_each_refusal_says_the_same(
    tiny: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    config: dict[str, Any],
) -> None:
    adapter = make_adapter(tiny["base"], tmp_path / "d", dtype=torch.float32, **config)
    if config:
        with pytest.raises(ContractError) as caught:
            check_cluster(tiny["base"], {"d": adapter}, allow_unverified=False)
        assert next(iter(config)) in str(caught.value)
        assert f"ps-sglang merge {adapter} --base {tiny['base']} --to " in str(caught.value)
    out = tmp_path / "whole"
    assert merge(tiny, adapter, out) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[-1].endswith(f"ps-sglang launch --prefill {tiny['base']} --decoders d={out}")
    (report,) = check_cluster(tiny["base"], {"d": out}, allow_unverified=False)
    assert report.manifest == read_manifest(adapter)
    assert report.adapter is None
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        whole = AutoModelForCausalLM.from_pretrained(out)(ids).logits
        base = AutoModelForCausalLM.from_pretrained(tiny["base"])
        alone = base(ids).logits
        adapted = PeftModel.from_pretrained(base, adapter)(ids).logits
    torch.testing.assert_close(whole, adapted, rtol=1e-3, atol=1e-3)
    assert (whole - alone).abs().max() > 0.1


def test_an_adapter_without_a_manifest(
    tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, out = make_adapter(tiny["base"], tmp_path / "d", manifest=False), tmp_path / "whole"
    assert merge(tiny, adapter, out) == 2
    assert "has no prefillshare.json" in capsys.readouterr().err
    assert not out.exists()
    assert merge(tiny, adapter, out, "--allow-unverified") == 0
    assert capsys.readouterr().err.endswith(f"d={out} --allow-unverified\n")
    assert not (out / MANIFEST_FILE).exists()
    assert check_cluster(tiny["base"], {"d": out}, allow_unverified=True)


def test_what_cannot_be_merged_is_refused_and_nothing_is_written(
    tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, out = make_adapter(tiny["base"], tmp_path / "d"), tmp_path / "whole"

    def refused(adapter: Path, out: Path, base: Path | None = None) -> str:
        assert merge(tiny | ({"base": base} if base else {}), adapter, out) == 2
        return capsys.readouterr().err

    assert "exists already; give the name of a new folder" in refused(adapter, tmp_path)
    assert "is a whole model, no adapter" in refused(tiny["a"], out)
    assert "was trained on tiny (ps1:" in refused(adapter, out, tiny["a"])
    assert "is a LoRA adapter, where a whole model is needed" in refused(adapter, out, adapter)
    assert "no folder /nowhere" in refused(Path("/nowhere"), out)
    config = json.loads((adapter / "adapter_config.json").read_text())
    alora = config | {"alora_invocation_tokens": [5]}
    (adapter / "adapter_config.json").write_text(json.dumps(alora))
    assert "peft cannot merge" in (said := refused(adapter, out))
    assert "aLoRA does not support merging" in said
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    half = {name: value for name, value in weights.items() if "layers.1.mlp.up_proj" not in name}
    save_file(half, file)
    assert "Found missing adapter keys" in refused(adapter, out)
    save_file({name: value[:, :1].clone() for name, value in weights.items()}, file)
    assert "peft cannot merge" in refused(adapter, out)
    assert not out.exists()


def test_tied_embeddings_that_an_adapter_parts_are_refused(
    tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tied checkpoint stores one of the two, so the other's change would be lost."""
    base = tmp_path / "base"
    shutil.copytree(tiny["base"], base)
    config = json.loads((base / "config.json").read_text()) | {"tie_word_embeddings": True}
    (base / "config.json").write_text(json.dumps(config))
    weights = load_file(base / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(UserWarning, match="Model has"):
        adapter = make_adapter(base, tmp_path / "d", target_modules=["q_proj", "lm_head"])
    assert merge({"base": base}, adapter, tmp_path / "whole") == 2
    assert "Model has `tie_word_embeddings=True`" in capsys.readouterr().err
