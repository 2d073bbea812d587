"""What of a model's `config.json` its KV cache and positions depend on.

A decoder starts as a copy of the base and is trained on the base's cache, so everything here must
be equal. Two groups, both strict:

- what the KV pages themselves need: architecture, layers, KV heads, head dim, rope, windows;
- what makes the KV, or reads it: hidden width, attention heads, MLP width, activation, norm
  epsilon, vocabulary, context length. A difference here would not stop the handoff; it shows that
  the decoder was not trained from this base, or that its config was edited.

Not compared: `tie_word_embeddings` and the weights' dtype. The base never uses its output head, and
the engine's `--dtype` decides what both compute in.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ps_sglang.contract.files import read_object
from ps_sglang.errors import CheckpointError

Rope = dict[str, Any]


@dataclass(frozen=True)
class ModelShape:
    """Sizes in elements; `rope` is normalised over the old and the new config layout."""

    architecture: str
    layers: int
    hidden_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    mlp_size: int
    activation: str
    rms_norm_eps: float
    vocabulary: int
    context_length: int
    rope: Rope
    sliding_window: int | None
    layer_types: tuple[str, ...] | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_shape(folder: Path) -> ModelShape:
    """The shape in `folder/config.json`; CheckpointError names a key that is missing."""
    path = folder / "config.json"
    config = read_object(path)
    architecture = (config.get("architectures") or [None])[0]
    # Multimodal checkpoints keep the language model's part one level down.
    config = config.get("text_config", config)
    try:
        return _shape(str(architecture), config)
    except KeyError as error:
        raise CheckpointError(f"{path} has no {error.args[0]}") from None
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has a value of the wrong type: {error}") from error


def _shape(architecture: str, config: dict[str, Any]) -> ModelShape:
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    windowed = config.get("use_sliding_window", True) and config.get("sliding_window")
    types = config.get("layer_types") or ()
    return ModelShape(
        architecture=architecture,
        layers=int(config["num_hidden_layers"]),
        hidden_size=hidden,
        attention_heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        mlp_size=int(config["intermediate_size"]),
        activation=str(config.get("hidden_act", "silu")),
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        vocabulary=int(config["vocab_size"]),
        context_length=int(config["max_position_embeddings"]),
        rope=_rope(config),
        sliding_window=int(windowed) if windowed else None,
        # Newer transformers write the list even where every layer attends to everything.
        layer_types=tuple(types) if set(types) - {"full_attention"} else None,
    )


def _rope(config: dict[str, Any]) -> Rope:
    """`rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before), as one."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if rope and all(isinstance(value, dict) for value in rope.values()):
        return {kind: _normal_rope(part, config) for kind, part in rope.items()}
    return _normal_rope(rope, config)


def _normal_rope(rope: Rope, config: dict[str, Any]) -> Rope:
    merged = {
        "rope_theta": config.get("rope_theta") or 10000.0,
        "rope_type": rope.get("type", "default"),
        "partial_rotary_factor": config.get("partial_rotary_factor") or 1.0,
        **{key: value for key, value in rope.items() if key != "type" and value is not None},
    }
    return {key: _number(value) for key, value in merged.items()}


def _number(value: Any) -> Any:
    """Integers as floats: 10000 and 10000.0 are one theta, and must give one fingerprint."""
    if isinstance(value, list):
        return [_number(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
