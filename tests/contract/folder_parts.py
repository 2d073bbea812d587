"""The parts of hand-made checkpoint folders; the fixture `build` puts them together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 2,
    "intermediate_size": 16,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "vocab_size": 12,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [{"id": 0, "content": "<s>", "special": True}],
    "model": {"type": "BPE", "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3}, "merges": [["a", "b"]]},
}
TOKENIZER_CONFIG: dict[str, Any] = {
    "bos_token": "<s>",
    "eos_token": "<s>",
    "chat_template": "{{ messages }}",
}

Build = Callable[..., Path]


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (12, 8), "model.norm.weight": (8,)}
    shapes |= {f"model.layers.{i}.self_attn.k_proj.weight": (4, 8) for i in range(2)}
    return {n: generator.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))
