"""Checkpoints whose weights say nothing: speed does not depend on them.

`smollm2` has the shape of SmolLM2-135M, `small` one that lets sweeps finish on two cores.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from tokenizers import Tokenizer

from benchmarks.tiny import VOCAB_SIZE, make_tiny
from ps_sglang.contract.manifest import MANIFEST_FILE
from ps_sglang.home import home
from ps_sglang.models.checkpoint import Tensors, TokenizerFiles, write_checkpoint
from ps_sglang.models.stand_in import Noise, write_stand_in, write_stand_in_adapter
from ps_sglang.progress import progress

CONTEXT_LENGTH: Final = 32768
_NOISE: Final = 0.1


@dataclass(frozen=True)
class Dimensions:
    """A Llama's shape."""

    vocabulary: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int


MODELS: Final = {
    "tiny": Dimensions(VOCAB_SIZE, 3, 128, 256, 4, 2, 32),
    "small": Dimensions(VOCAB_SIZE, 8, 384, 1024, 6, 2, 64),
    "smollm2": Dimensions(49152, 30, 576, 1536, 9, 3, 64),
}


@dataclass(frozen=True)
class Checkpoints:
    """A base, its decoders, and as many adapters of it by the same names.

    Token ids from `first` up to `vocabulary` are free to use.
    """

    base: Path
    decoders: dict[str, Path]
    adapters: dict[str, Path]
    first: int
    vocabulary: int


def checkpoints(name: str, decoders: int) -> Checkpoints:
    """The model's base and decoders, written when first asked for."""
    shape = MODELS[name]
    folder = home() / "models" / f"agents-{name}"
    done = folder / "base" / "model.safetensors"
    names = [f"d{number}" for number in range(decoders)]
    whole = {decoder: folder / decoder for decoder in names}
    adapters = {decoder: folder / "adapters" / decoder for decoder in names}
    written = [one / MANIFEST_FILE for one in (*whole.values(), *adapters.values())]
    if not done.exists() or not all(manifest.exists() for manifest in written):
        _write(shape, folder, names)
    # The first ids are special tokens.
    return Checkpoints(folder / "base", whole, adapters, 16, VOCAB_SIZE)


def _write(shape: Dimensions, folder: Path, names: Sequence[str]) -> None:
    progress(f"writing {len(names) + 1} random checkpoints and their adapters to {folder}")
    base = _weights(shape)
    write_checkpoint(folder / "base", _config(shape), base, _tokenizer())
    for seed, name in enumerate(names):
        write_stand_in(folder / "base", base, folder / name, Noise(_NOISE, seed))
        adapter = folder / "adapters" / name
        shutil.rmtree(adapter, ignore_errors=True)
        write_stand_in_adapter(folder / "base", adapter, Noise(_NOISE, seed))


def _config(shape: Dimensions) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT_LENGTH,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "attention_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _weights(shape: Dimensions) -> Tensors:
    generator = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        weights = generator.standard_normal((rows, columns), dtype=np.float32)
        return weights / np.float32(np.sqrt(columns))

    ones = np.ones(shape.hidden, dtype=np.float32)
    embedding = matrix(shape.vocabulary, shape.hidden)
    embedding[VOCAB_SIZE:] = 0  # the tokenizer has no words for them, so none is ever said
    tensors: Tensors = {"model.embed_tokens.weight": embedding, "model.norm.weight": ones}
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        tensors |= {
            f"{prefix}.input_layernorm.weight": ones.copy(),
            f"{prefix}.post_attention_layernorm.weight": ones.copy(),
            f"{prefix}.self_attn.q_proj.weight": matrix(queries, shape.hidden),
            f"{prefix}.self_attn.k_proj.weight": matrix(keys, shape.hidden),
            f"{prefix}.self_attn.v_proj.weight": matrix(keys, shape.hidden),
            f"{prefix}.self_attn.o_proj.weight": matrix(shape.hidden, queries),
            f"{prefix}.mlp.gate_proj.weight": matrix(shape.intermediate, shape.hidden),
            f"{prefix}.mlp.up_proj.weight": matrix(shape.intermediate, shape.hidden),
            f"{prefix}.mlp.down_proj.weight": matrix(shape.hidden, shape.intermediate),
        }
    return tensors


def _tokenizer() -> TokenizerFiles:
    with tempfile.TemporaryDirectory() as folder:
        base = make_tiny("llama", Path(folder))["base"]
        tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
        template = (base / "chat_template.jinja").read_text()
    return TokenizerFiles(
        tokenizer, template, "<|im_start|>", "<|im_end|>", "<|endoftext|>", CONTEXT_LENGTH
    )
