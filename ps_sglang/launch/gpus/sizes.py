"""How much memory a model takes on each of its GPUs, from `config.json` and weights' headers.

Shapes follow SGLang's tensor parallelism: projections and both embeddings are divided, norms are
not, and a GPU holds at least one KV head, so that few heads are repeated over many GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ps_sglang.contract.files import read_object
from ps_sglang.contract.shape import ModelShape, read_shape
from ps_sglang.contract.tensors import Tensor, read_tensors

_ITEM_BYTES: Final = {
    "float32": 4,
    "float": 4,
    "float16": 2,
    "half": 2,
    "bfloat16": 2,
    "bf16": 2,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
    "float8_e4m3fn": 1,
}
_FLOATS: Final = frozenset(("F64", "F32", "F16", "BF16"))
_DIVIDED: Final = frozenset(
    ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head")
)
_KV_PROJECTIONS: Final = frozenset(("k_proj", "v_proj"))
_ROW_PARALLEL: Final = frozenset(("o_proj", "down_proj"))


@dataclass(frozen=True)
class ModelSize:
    """Bytes on each GPU of a worker: all the weights, and the KV of one token."""

    weights_bytes: int
    token_bytes: int


def read_size(folder: Path, tp: int, dtype: str, kv_dtype: str) -> ModelSize:
    """The size of the model in `folder` over `tp` GPUs; both dtypes as SGLang's flags have them."""
    shape, item = read_shape(folder), item_bytes(folder, dtype)
    kept = bool(_text_config(folder).get("quantization_config"))
    return ModelSize(
        weights_bytes(read_tensors(folder).values(), shape, tp, None if kept else item),
        token_bytes(shape, tp, _ITEM_BYTES.get(kv_dtype, item)),
    )


def item_bytes(folder: Path, dtype: str) -> int:
    """Bytes of one number as SGLang computes with it; `auto` makes float16 of float32."""
    if dtype in _ITEM_BYTES:
        return _ITEM_BYTES[dtype]
    config = _text_config(folder)
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return min(2, _ITEM_BYTES.get(stored, 2))


def token_bytes(shape: ModelShape, tp: int, item: int) -> int:
    """Keys and values of one token in all layers, on each of `tp` GPUs."""
    return shape.layers * 2 * max(1, shape.kv_heads // tp) * shape.head_dim * item


def weights_bytes(tensors: Iterable[Tensor], shape: ModelShape, tp: int, item: int | None) -> int:
    """Weights on each of `tp` GPUs; floats take `item` bytes each, None for as they are stored."""
    kv_parts = min(tp, shape.kv_heads)
    total = 0
    for tensor in tensors:
        size = tensor.end - tensor.start
        if item is not None and tensor.dtype in _FLOATS:
            size = math.prod(tensor.shape) * item
        modules = set(tensor.name.split("."))
        parts = kv_parts if modules & _KV_PROJECTIONS else tp if modules & _DIVIDED else 1
        total += -(-size // parts)
    return total


def adapter_bytes(
    shape: ModelShape, tp: int, item: int, rank: int, slots: int, modules: Sequence[str]
) -> int:
    """SGLang's slots for adapters on each of `tp` GPUs: each holds any adapter up to `rank`.

    The half of a slot that faces a divided dimension is divided, the other is not.
    """
    numbers = 0
    for module, (inputs, outputs) in _projections(shape):
        if module not in modules and "all" not in modules:
            continue
        if module in _ROW_PARALLEL:
            inputs = -(-inputs // tp)
        else:
            parts = min(tp, shape.kv_heads) if module in _KV_PROJECTIONS else tp
            outputs = -(-outputs // parts)
        numbers += inputs + outputs
    return numbers * shape.layers * rank * slots * item


def tp_problem(shape: ModelShape, tp: int) -> str | None:
    """Why a model cannot be divided over `tp` GPUs, None if it can."""
    if tp < 1:
        return f"tp is {tp}, must be at least 1"
    if shape.attention_heads % tp:
        return f"tp {tp} does not divide its {shape.attention_heads} attention heads"
    if shape.kv_heads % tp and tp % shape.kv_heads:
        return f"tp {tp} and its {shape.kv_heads} KV heads do not divide each other"
    if shape.mlp_size % tp:
        return f"tp {tp} does not divide its MLP of {shape.mlp_size}"
    return None


def _projections(shape: ModelShape) -> Iterator[tuple[str, tuple[int, int]]]:
    hidden, mlp = shape.hidden_size, shape.mlp_size
    queries, keys = (heads * shape.head_dim for heads in (shape.attention_heads, shape.kv_heads))
    yield "q_proj", (hidden, queries)
    yield "k_proj", (hidden, keys)
    yield "v_proj", (hidden, keys)
    yield "o_proj", (queries, hidden)
    yield "gate_proj", (hidden, mlp)
    yield "up_proj", (hidden, mlp)
    yield "down_proj", (mlp, hidden)


def _text_config(folder: Path) -> dict[str, Any]:
    config = read_object(folder / "config.json")
    text: dict[str, Any] = config.get("text_config", config)
    return text
