"""Checkpoints of any size that take no room on disk: headers of weights, and holes for the data."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any


def write_sparse(config_file: Path, folder: Path) -> Path:
    """A checkpoint of the shape in `config_file`, in bfloat16; all its weights are zero."""
    folder.mkdir(parents=True)
    shutil.copyfile(config_file, folder / "config.json")
    header: dict[str, Any] = {}
    end = 0
    for name, shape in _tensors(json.loads(config_file.read_text())).items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


def _tensors(config: dict[str, Any]) -> dict[str, list[int]]:
    hidden, mlp, heads = (
        config[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads")
    )
    head_dim = config.get("head_dim", hidden // heads)
    keys = config["num_key_value_heads"] * head_dim
    vocabulary = [config["vocab_size"], hidden]
    tensors = {
        "model.embed_tokens.weight": vocabulary,
        "lm_head.weight": vocabulary,
        "model.norm.weight": [hidden],
    }
    layer = {
        "self_attn.q_proj": [heads * head_dim, hidden],
        "self_attn.k_proj": [keys, hidden],
        "self_attn.v_proj": [keys, hidden],
        "self_attn.o_proj": [hidden, heads * head_dim],
        "mlp.gate_proj": [mlp, hidden],
        "mlp.up_proj": [mlp, hidden],
        "mlp.down_proj": [hidden, mlp],
        "input_layernorm": [hidden],
        "post_attention_layernorm": [hidden],
    }
    if config["model_type"] == "qwen3":
        layer |= {"self_attn.q_norm": [head_dim], "self_attn.k_norm": [head_dim]}
    for number in range(config["num_hidden_layers"]):
        tensors |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return tensors
