"""Tiny random Llama and Qwen3 checkpoints for fast engine tests.

The usual initialisation (std 0.02) makes a model that repeats one token whatever its KV cache
says, so it cannot tell a right handoff from a wrong one. Here attention is scaled until it
outweighs the current token's embedding: what greedy decoding says then depends on the whole cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ps_sglang.models.checkpoint import Tensors, TokenizerFiles, write_checkpoint
from ps_sglang.models.stand_in import Noise, write_stand_in

Family = Literal["llama", "qwen3"]

DECODERS = ("a", "b", "c")
CONTEXT_LENGTH = 2048
VOCAB_SIZE = 512
LAYERS, HIDDEN, INTERMEDIATE = 3, 128, 256
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 32
# Fraction of each matrix's std; large, so that a decoder's own KV misleads it at once.
DECODER_NOISE = 0.5
# Std of queries and keys: attention picks single tokens instead of averaging over the prompt.
SHARPNESS = 2.0
# What attention adds to the residual stream, whose token embedding has std 1.
ATTENTION_GAIN = 4.0
# Std of the logits: the two best of 512 then differ by about 1, far above float32 rounding.
LOGIT_STD = 4.0

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Only feeds the merges of the byte-level BPE; any text of this size would do.
_MERGE_TEXT = (
    "The system asks the user a question and the assistant answers it step by step. ",
    "One model reads the prompt for all of the others; each of the others writes its own words. ",
    "What is the weather in the town by the river, and how far is it from here to there? ",
    'def total(values): return sum(value for value in values) # {"name": "total", "value": 12} ',
    "user assistant system tool function thought action observation finish planner actor coder ",
)


def make_tiny(family: Family, out: Path, seed: int = 0) -> dict[str, Path]:
    """Write `out/base` and the decoders `out/a`, `out/b`, `out/c`; return name -> folder.

    The decoders are stand-ins: the base plus seeded noise. Float32, context of 2048 tokens.
    """
    tokenizer = _tokenizer()
    base = _random_weights(family, tokenizer.tokenizer, seed)
    folders = {name: out / name for name in ("base", *DECODERS)}
    write_checkpoint(folders["base"], _config(family), base, tokenizer)
    for index, name in enumerate(DECODERS):
        noise = Noise(DECODER_NOISE, seed=1000 * (seed + 1) + index)
        write_stand_in(folders["base"], base, folders[name], noise)
    return folders


def _tokenizer() -> TokenizerFiles:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # tokenizers' stubs leave this constructor untyped.
    trainer = trainers.BpeTrainer(  # type: ignore[no-untyped-call]
        vocab_size=VOCAB_SIZE,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_MERGE_TEXT, trainer)
    return TokenizerFiles(
        tokenizer, _CHAT_TEMPLATE, "<|im_start|>", "<|im_end|>", "<|endoftext|>", CONTEXT_LENGTH
    )


def _config(family: Family) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM" if family == "llama" else "Qwen3ForCausalLM"],
        "model_type": family,
        "dtype": "float32",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT_LENGTH,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "attention_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _random_weights(family: Family, tokenizer: Tokenizer, seed: int) -> Tensors:
    generator = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, gain: float) -> np.ndarray:
        weights = generator.standard_normal((rows, columns), dtype=np.float32)
        return weights * np.float32(gain / np.sqrt(columns))

    def norm(size: int, mean: float = 1.0) -> np.ndarray:
        return mean + np.float32(0.1) * generator.standard_normal(size, dtype=np.float32)

    tensors: Tensors = {"model.embed_tokens.weight": matrix(VOCAB_SIZE, HIDDEN, HIDDEN**0.5)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        attention = f"{prefix}.self_attn"
        tensors[f"{prefix}.input_layernorm.weight"] = norm(HIDDEN)
        tensors[f"{prefix}.post_attention_layernorm.weight"] = norm(HIDDEN)
        tensors[f"{attention}.q_proj.weight"] = matrix(HEADS * HEAD_DIM, HIDDEN, SHARPNESS)
        tensors[f"{attention}.k_proj.weight"] = matrix(KV_HEADS * HEAD_DIM, HIDDEN, SHARPNESS)
        tensors[f"{attention}.v_proj.weight"] = matrix(KV_HEADS * HEAD_DIM, HIDDEN, 1.0)
        tensors[f"{attention}.o_proj.weight"] = matrix(HIDDEN, HEADS * HEAD_DIM, ATTENTION_GAIN)
        tensors[f"{prefix}.mlp.gate_proj.weight"] = matrix(INTERMEDIATE, HIDDEN, 1.0)
        tensors[f"{prefix}.mlp.up_proj.weight"] = matrix(INTERMEDIATE, HIDDEN, 1.0)
        tensors[f"{prefix}.mlp.down_proj.weight"] = matrix(HIDDEN, INTERMEDIATE, 1.0)
        if family == "qwen3":
            tensors[f"{attention}.q_norm.weight"] = norm(HEAD_DIM, SHARPNESS)
            tensors[f"{attention}.k_norm.weight"] = norm(HEAD_DIM, SHARPNESS)
    tensors["model.norm.weight"] = norm(HIDDEN)
    tensors["lm_head.weight"] = matrix(VOCAB_SIZE, HIDDEN, LOGIT_STD)
    tensors["lm_head.weight"][_never_said(tokenizer)] = 0
    return tensors


def _never_said(tokenizer: Tokenizer) -> list[int]:
    """Ids whose logit stays 0, far below the best: special tokens, so that generation runs to its
    limit, and bytes that are not printable ASCII, so that every output is valid text."""

    def plain(text: str) -> bool:
        return text != "" and text.isascii() and text.isprintable()

    return [i for i in range(VOCAB_SIZE) if not plain(tokenizer.decode([i]))]
