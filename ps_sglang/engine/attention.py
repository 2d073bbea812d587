"""Attention of a prefill on the CPU: only the rows of its new tokens.

SGLang's `torch_native` backend (layers/attention/torch_native_backend.py), which the portable CPU
platform uses, computes the rows of the whole context whenever a prompt is extended and throws those
of the cached prefix away: a cached prefix saves no attention, and a prefill in chunks costs more
than one in a piece. Here each request computes its new rows, by the same kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def run_sdpa_forward_extend(
    original: Callable[..., Tensor],
    backend: Any,
    query: Tensor,
    output: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    seq_lens: Tensor,
    extend_prefix_lens: Tensor,
    extend_seq_lens: Tensor,
    encoder_lens: Tensor | None = None,
    scaling: float | None = None,
    enable_gqa: bool = False,
    causal: bool = False,
    is_cross_attn: bool = False,
    sliding_window_size: int | None = None,
) -> Tensor:
    """Around ``TorchNativeAttnBackend._run_sdpa_forward_extend``.

    `query` and `output` are [new tokens, heads, head size], the caches [pool tokens, KV heads,
    head size], the lengths one a request. Cross attention, encoders and sliding windows stay as
    they are, and so does a batch without a cached prefix.
    """
    windowed = sliding_window_size is not None and sliding_window_size >= 0
    is_plain = causal and not is_cross_attn and not windowed and encoder_lens is None
    if not is_plain or not bool(extend_prefix_lens.any()):
        return original(
            backend, query, output, k_cache, v_cache, req_to_token, req_pool_indices, seq_lens,
            extend_prefix_lens, extend_seq_lens, encoder_lens, scaling, enable_gqa, causal,
            is_cross_attn, sliding_window_size,
        )  # fmt: skip
    start = 0
    slots, totals = req_pool_indices.tolist(), seq_lens.tolist()
    for slot, total, new in zip(slots, totals, extend_seq_lens.tolist(), strict=True):
        tokens = req_to_token[slot, :total]
        key, value = (cache[tokens].to(query.dtype).movedim(0, 1) for cache in (k_cache, v_cache))
        rows = scaled_dot_product_attention(
            query[start : start + new].movedim(0, 1).unsqueeze(0),
            key.unsqueeze(0),
            value.unsqueeze(0),
            # SDPA's own causal mask is for as many queries as keys.
            attn_mask=_causal(new, total, query.dtype) if new < total else None,
            is_causal=new == total,
            scale=scaling,
            enable_gqa=enable_gqa,
        )
        output[start : start + new] = rows.squeeze(0).movedim(1, 0)
        start += new
    return output


def _causal(new: int, total: int, dtype: torch.dtype) -> Tensor:
    """[new, total]: the last `new` of `total` tokens see those before them and themselves."""
    return torch.full((new, total), float("-inf"), dtype=dtype).triu_(total - new + 1)
