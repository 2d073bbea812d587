"""The two trainings: from a batch to the loss of each row. Everything else they share."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.nn.functional import cross_entropy

from ps_sglang.training.train.attention import answer_mask
from ps_sglang.training.train.base import BaseReader
from ps_sglang.training.train.batches import IGNORED, Batch


class RowLosses(Protocol):
    def losses(self, model: Any, batch: Batch) -> torch.Tensor:
        """The negative log likelihood of each example's answer tokens, summed: [examples]."""


class CacheConditioned:
    """The base prefills the prompt, the decoder reads tails, boundary tokens and answers on its
    KV."""

    def __init__(self, base: BaseReader) -> None:
        self._base = base

    def losses(self, model: Any, batch: Batch) -> torch.Tensor:
        prefix = self._base.read(batch["base_ids"], batch["base_lengths"])
        columns = _labelled(batch["labels"])
        output = model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            attention_mask=answer_mask(batch["visible"], batch["segments"], prefix.tokens),
            base_prefix=prefix,
            use_cache=False,
            logits_to_keep=columns,
        )
        assert not prefix.unread, f"layers {prefix.unread} never asked for the base's KV"
        return _row_losses(output.logits, batch["labels"][:, columns])


class Full:
    """Ordinary fine-tuning, the baseline: the model computes the prompt's KV itself."""

    def losses(self, model: Any, batch: Batch) -> torch.Tensor:
        columns = _labelled(batch["labels"])
        output = model(input_ids=batch["input_ids"], use_cache=False, logits_to_keep=columns)
        losses = _row_losses(output.logits, batch["labels"][:, columns])
        examples = losses.new_zeros(len(batch["answer_tokens"]))
        return examples.index_add(0, batch["owners"], losses)


def _labelled(labels: torch.Tensor) -> torch.Tensor:
    """The columns in which some row has a label: others need no logits, which the vocabulary makes
    dear."""
    return labels.ne(IGNORED).any(dim=0).nonzero()[:, 0]


def _row_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = cross_entropy(
        wide.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(labels).sum(dim=1)
