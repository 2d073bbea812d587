"""Attention over a masked cache without a copy of it, as an attention function of transformers.

transformers repeats every KV head for the query heads that share it as soon as there is a mask:
at each token of an answer the whole cache would be copied. Here those query heads become rows of
one attention call over their KV head.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION: Final = "ps_sglang_grouped"


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`query` [rows, heads, queries, head dim] over `key` and `value` [rows, KV heads, columns,
    head dim]; the mask is [rows, 1, queries, columns], True where to attend. Without one it is
    causal, as transformers does it."""
    if attention_mask is None:
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, None, scaling=scaling, **kwargs
        )
        return plain
    rows, heads, queries, width = query.shape
    groups = heads // key.shape[1]
    grouped = query.reshape(rows, key.shape[1], groups * queries, width)
    mask = attention_mask.expand(rows, 1, queries, key.shape[2]).repeat(1, 1, groups, 1)
    output = scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return output.reshape(rows, heads, queries, width).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
