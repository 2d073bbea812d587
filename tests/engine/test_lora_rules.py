"""What the contract refuses of adapters is what SGLang's LoRA does with them, in this version."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sglang.srt.lora.lora import LoRAAdapter
from sglang.srt.lora.lora_config import LoRAConfig
from sglang.srt.lora.utils import get_normalized_target_modules, get_target_module_name
from transformers import LlamaConfig

RANK, WIDTH = 2, 8
SERVER = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}


def loaded(*modules: str, **items: Any) -> LoRAAdapter:
    """SGLang's adapter with A and B of these modules in layer 0."""
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "target_modules": [*modules]}
    adapter = LoRAAdapter(
        "x",
        LoRAConfig.from_dict(config | items),
        LlamaConfig(num_hidden_layers=1),
        None,
        None,
    )
    adapter.initialize_weights_from_tensors(
        {
            f"base_model.model.model.layers.0.{module}.lora_{half}.weight": torch.ones(shape)
            for module in modules
            for half, shape in (("A", (RANK, WIDTH)), ("B", (WIDTH, RANK)))
        }
    )
    return adapter


def targets(adapter: LoRAAdapter) -> dict[str, tuple[int, ...]]:
    """Module -> the shape of its A, as SGLang finds them in its buffers."""
    return {
        get_target_module_name(name, SERVER): tuple(weight.shape)
        for name, weight in adapter.layers[0].weights.items()
        if "lora_A" in name
    }


def test_accepted_parts_end_in_sglangs_buffers() -> None:
    adapter = loaded("self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.down_proj")
    assert targets(adapter) == {
        "qkv_proj": (3 * RANK, WIDTH),
        "gate_up_proj": (2 * RANK, WIDTH),
        "down_proj": (RANK, WIDTH),
    }
    (fused,) = (w for n, w in adapter.layers[0].weights.items() if "qkv_proj.lora_B" in n)
    assert fused[WIDTH : 2 * WIDTH].abs().sum() == 0  # k_proj, which it lacks
    assert fused.abs().sum() == 2 * WIDTH * RANK


@pytest.mark.parametrize("modules", [("q_proj",), ("q_proj", "k_proj")])
def test_queries_need_values(modules: tuple[str, ...]) -> None:
    with pytest.raises(KeyError, match="v_proj"):
        loaded(*(f"self_attn.{module}" for module in modules))


@pytest.mark.parametrize("module", ["self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj"])
def test_parts_without_their_first_one_are_not_found(module: str) -> None:
    with pytest.raises(ValueError, match="Cannot find target module name"):
        targets(loaded(module))


@pytest.mark.parametrize(
    "items",
    [{"use_rslora": True}, {"rank_pattern": {"q_proj": 4}}, {"alpha_pattern": {"down_proj": 1}}],
)
def test_another_scale_is_not_looked_at(items: dict[str, Any]) -> None:
    assert loaded("mlp.down_proj", **items).scaling == 6 / RANK


def test_a_pattern_of_modules_is_an_error_and_all_linear_is_none() -> None:
    with pytest.raises(ValueError, match="Only 'all' or 'all-linear'"):
        get_normalized_target_modules(".*_proj")
    assert get_normalized_target_modules("all-linear") == {"all"}
