"""A Llama checkpoint in a GGUF file, as Hugging Face tensors, config and tokenizer.

Goes through the `gguf` package and numpy: reading 135 million weights takes seconds, and neither
torch, transformers nor accelerate (which transformers asks for here) is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ps_sglang.models.checkpoint import Tensors, TokenizerFiles

_TOP_LEVEL = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# `gguf.constants.TokenType`: tokens of these types are matched before BPE sees the text.
_CONTROL_TOKEN = 3


class GgufLlama:
    """One GGUF file of architecture `llama` with a byte-level BPE tokenizer (`smollm`)."""

    def __init__(self, path: Path) -> None:
        self._reader = GGUFReader(path)

    def config(self) -> dict[str, Any]:
        """The `config.json` of the checkpoint, float32."""
        hidden, heads = (
            self._field("llama.embedding_length"),
            self._field("llama.attention.head_count"),
        )
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "float32",
            "vocab_size": self._field("llama.vocab_size"),
            "hidden_size": hidden,
            "intermediate_size": self._field("llama.feed_forward_length"),
            "num_hidden_layers": self._field("llama.block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._field("llama.attention.head_count_kv"),
            "head_dim": hidden // heads,
            "hidden_act": "silu",
            "max_position_embeddings": self._field("llama.context_length"),
            # The file holds a float32, 9.99999975e-06 for 1e-05.
            "rms_norm_eps": float(f"{self._field('llama.attention.layer_norm_rms_epsilon'):.6g}"),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": float(self._field("llama.rope.freq_base")),
            },
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": "output.weight" not in {t.name for t in self._reader.tensors},
            "bos_token_id": self._field("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self._field("tokenizer.ggml.eos_token_id"),
            "pad_token_id": self._field("tokenizer.ggml.padding_token_id"),
        }

    def tensors(self) -> Tensors:
        """All weights dequantised to float32, under their Hugging Face names."""
        heads = self._field("llama.attention.head_count")
        kv_heads = self._field("llama.attention.head_count_kv")
        tensors: Tensors = {}
        for tensor in self._reader.tensors:
            weights = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
            if ".attn_q." in tensor.name:
                weights = _halves_apart(weights, heads)
            elif ".attn_k." in tensor.name:
                weights = _halves_apart(weights, kv_heads)
            tensors[_hugging_face_name(tensor.name)] = weights
        return tensors

    def tokenizer(self) -> TokenizerFiles:
        """The byte-level BPE with single digits (`tokenizer.ggml.pre` = `smollm`)."""
        tokens = self._field("tokenizer.ggml.tokens")
        types = self._field("tokenizer.ggml.token_type")
        merges = [tuple(merge.split(" ")) for merge in self._field("tokenizer.ggml.merges")]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        tokenizer = Tokenizer(models.BPE(vocabulary, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        control = [
            token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL_TOKEN
        ]
        tokenizer.add_special_tokens(
            [AddedToken(t, normalized=False, special=True) for t in control]
        )
        special = {
            name: tokens[self._field(f"tokenizer.ggml.{name}_token_id")]
            for name in ("bos", "eos", "padding")
        }
        return TokenizerFiles(
            tokenizer,
            chat_template=self._field("tokenizer.chat_template"),
            bos_token=special["bos"],
            eos_token=special["eos"],
            pad_token=special["padding"],
            context_length=self._field("llama.context_length"),
        )

    def _field(self, name: str) -> Any:
        return self._reader.fields[name].contents()


def _hugging_face_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if not stem.startswith("blk."):
        return f"{_TOP_LEVEL[stem]}.weight"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{_IN_BLOCK[part]}.weight"


def _halves_apart(weights: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Undo GGUF's row order of query and key matrices [heads * head_dim, hidden].

    GGUF puts the two rows that rotary embedding pairs side by side; transformers keeps them
    half a head apart.
    """
    pairs = weights.reshape(heads, weights.shape[0] // heads // 2, 2, weights.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weights.shape)
