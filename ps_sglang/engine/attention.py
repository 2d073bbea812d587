"""Attention on the CPU: a prefill computes the rows of its new tokens, rows are gathered fast.

The portable CPU platform uses SGLang's `torch_native` backend
(layers/attention/torch_native_backend.py). Whenever a prompt is extended, that one computes the
rows of the whole context and throws those of the cached prefix away: a cached prefix saves no
attention, and a prefill in chunks costs more than one in a piece. Here each request computes its
new rows, by the same kernel. And what is gathered from the pool, here and for a decode step, goes
by `index_select`, which copies rows as they are: a fifth of the time that indexing takes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ps_sglang.engine.compat.srt import TorchNativeAttnBackend, register_attention_backend


class IncrementalSdpaBackend(TorchNativeAttnBackend):  # type: ignore[misc]
    """`torch_native` without what it computes in vain.

    Cross attention, encoders and sliding windows stay as they are.
    """

    def _run_sdpa_forward_extend(
        self,
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
        """Attention of a prefill's new tokens.

        `query` and `output` are [new tokens, heads, head size], the caches [pool tokens, KV heads,
        head size], the lengths one a request.
        """
        if not causal or _is_special(encoder_lens, is_cross_attn, sliding_window_size):
            stock: Tensor = super()._run_sdpa_forward_extend(
                query, output, k_cache, v_cache, req_to_token, req_pool_indices, seq_lens,
                extend_prefix_lens, extend_seq_lens, encoder_lens, scaling, enable_gqa, causal,
                is_cross_attn, sliding_window_size,
            )  # fmt: skip
            return stock
        start = 0
        slots, totals = req_pool_indices.tolist(), seq_lens.tolist()
        for slot, total, new in zip(slots, totals, extend_seq_lens.tolist(), strict=True):
            tokens = req_to_token[slot, :total]
            rows = scaled_dot_product_attention(
                query[start : start + new].movedim(0, 1).unsqueeze(0),
                _gathered(k_cache, tokens, query.dtype),
                _gathered(v_cache, tokens, query.dtype),
                # SDPA's own causal mask is for as many queries as keys.
                attn_mask=_causal(new, total, query.dtype) if new < total else None,
                is_causal=new == total,
                scale=scaling,
                enable_gqa=enable_gqa,
            )
            output[start : start + new] = rows.squeeze(0).movedim(1, 0)
            start += new
        return output

    def _run_sdpa_forward_decode(
        self,
        query: Tensor,
        output: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        req_to_token: Tensor,
        req_pool_indices: Tensor,
        seq_lens: Tensor,
        encoder_lens: Tensor | None = None,
        scaling: float | None = None,
        enable_gqa: bool = False,
        causal: bool = False,
        is_cross_attn: bool = False,
        sliding_window_size: int | None = None,
    ) -> Tensor:
        """Attention of a decode step: `query` and `output` are [requests, heads, head size]."""
        if causal or _is_special(encoder_lens, is_cross_attn, sliding_window_size):
            stock: Tensor = super()._run_sdpa_forward_decode(
                query, output, k_cache, v_cache, req_to_token, req_pool_indices, seq_lens,
                encoder_lens, scaling, enable_gqa, causal, is_cross_attn, sliding_window_size,
            )  # fmt: skip
            return stock
        totals = seq_lens.tolist()
        for index, (slot, total) in enumerate(zip(req_pool_indices.tolist(), totals, strict=True)):
            tokens = req_to_token[slot, :total]
            row = scaled_dot_product_attention(
                query[index].unsqueeze(1).unsqueeze(0),
                _gathered(k_cache, tokens, query.dtype),
                _gathered(v_cache, tokens, query.dtype),
                scale=scaling,
                enable_gqa=enable_gqa,
            )
            output[index] = row.squeeze(0).squeeze(1)
        return output


def _is_special(
    encoder_lens: Tensor | None, is_cross_attn: bool, sliding_window_size: int | None
) -> bool:
    windowed = sliding_window_size is not None and sliding_window_size >= 0
    return windowed or is_cross_attn or encoder_lens is not None


def _gathered(cache: Tensor, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """[1, KV heads, tokens, head size] of a cache."""
    return cache.index_select(0, tokens).to(dtype).movedim(0, 1).unsqueeze(0)


def _causal(new: int, total: int, dtype: torch.dtype) -> Tensor:
    """[new, total]: the last `new` of `total` tokens see those before them and themselves."""
    return torch.full((new, total), float("-inf"), dtype=dtype).triu_(total - new + 1)


def register() -> None:
    """Take the place of `--attention-backend torch_native`."""
    register_attention_backend("torch_native")(IncrementalSdpaBackend)
