"""An adapter at work, and merged without peft: what peft makes of it, on its own base only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from ps_sglang.contract import check_cluster, read_manifest
from ps_sglang.errors import CheckpointError
from ps_sglang.models import NamedModel
from ps_sglang.models.adapted import Adapted
from ps_sglang.models.adapter import write_adapted
from ps_sglang.training.train.export import merge_adapter
from tests.support.adapters import make_adapter


@pytest.fixture(scope="module")
def adapter(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny["base"], tmp_path_factory.mktemp("adapter"))


def test_weights_are_those_that_peft_merges(
    tiny: dict[str, Path], adapter: Path, tmp_path: Path
) -> None:
    write_adapted(tiny["base"], adapter, tmp_path / "ours")
    merge_adapter(NamedModel("tiny", tiny["base"]), adapter, tmp_path / "peft", None)
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_adapters_at_work_say_what_pefts_do_and_the_base_stays_itself(
    tiny: dict[str, Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    targets = (["q_proj", "v_proj"], "all-linear")
    folders = [
        make_adapter(
            tiny["base"], tmp_path / str(i), seed=i, dtype=dtype, r=2 + i, target_modules=target
        )
        for i, target in enumerate(targets)
    ]
    base = AutoModelForCausalLM.from_pretrained(tiny["base"])
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        alone = base(ids).logits
        ours = [Adapted(base, folder)(input_ids=ids).logits for folder in folders]
        again = base(ids).logits
        for folder, logits in zip(folders, ours, strict=True):
            other = AutoModelForCausalLM.from_pretrained(tiny["base"])
            peft = PeftModel.from_pretrained(other, folder)(ids).logits
            torch.testing.assert_close(logits, peft, rtol=1e-4, atol=1e-3)
            assert (logits - alone).abs().max() > 0.1
    assert torch.equal(alone, again)
    assert (ours[0] - ours[1]).abs().max() > 0.1


def test_the_base_stays_itself_after_a_failure(tiny: dict[str, Path], adapter: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny["base"])
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        alone = base(ids).logits
        with pytest.raises(ValueError, match="exactly one of"):
            Adapted(base, adapter)()
        assert torch.equal(base(ids).logits, alone)
