"""Attention of a decoder that reads the base's KV, as an attention function of transformers.

The KV is not handed over as `past_key_values`: gradient checkpointing takes those away, because a
cache that grows would grow again when a layer is computed again. A `BasePrefix` is only read, so it
travels as a keyword argument of the model down to here and may be read any number of times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# Keys and values of one layer, each [rows, KV heads, tokens, head dim].
LayerKv = tuple[torch.Tensor, torch.Tensor]

ATTENTION: Final = "ps_sglang"


class BasePrefix:
    """The base's KV of a batch of prefixes, padded on the right to one length."""

    def __init__(self, layers: Sequence[LayerKv]) -> None:
        self._layers = layers
        self._read: set[int] = set()

    def layer(self, index: int) -> LayerKv:
        self._read.add(index)
        return self._layers[index]

    @property
    def tokens(self) -> int:
        return int(self._layers[0][0].shape[2])

    @property
    def unread(self) -> list[int]:
        """Layers whose KV no attention has asked for: with any, the model trains on nothing."""
        return sorted(set(range(len(self._layers))) - self._read)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    base_prefix: BasePrefix | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """SDPA over the base's KV and the decoder's own; over its own alone without a `base_prefix`.

    With a prefix of L tokens the mask is [rows, 1, queries, L + queries], True where to attend.
    """
    if base_prefix is not None:
        base_key, base_value = base_prefix.layer(module.layer_idx)
        key = torch.cat([base_key.to(key.dtype), key], dim=2)
        value = torch.cat([base_value.to(value.dtype), value], dim=2)
    output: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, **kwargs
    )
    return output


def answer_mask(visible: torch.Tensor, segments: torch.Tensor, prefix: int) -> torch.Tensor:
    """What each of the decoder's tokens may see: [rows, 1, queries, prefix + queries], bool.

    `visible` [rows, queries]: how many of the row's base tokens come before the token's segment.
    `segments` [rows, queries]: which answer it belongs to. It sees those base tokens, and of the
    decoder's own its segment up to itself.

        base prefix  0 1 2 3 4 5 6 7 8 9      segment 0 (boundary 3)   segment 1 (boundary 9)
        segment 0    x x x                    causal                   -
        segment 1    x x x x x x x x x        -                        causal

    With a tail of 2 tokens they begin with tokens 1 and 7, and see 1 and 7 of the base's.
    """
    columns = torch.arange(prefix, device=visible.device)
    on_base = columns < visible[:, :, None]
    queries = segments.shape[1]
    causal = torch.ones(queries, queries, dtype=torch.bool, device=visible.device).tril()
    on_own = (segments[:, :, None] == segments[:, None, :]) & causal
    return torch.cat([on_base, on_own], dim=2)[:, None]


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
