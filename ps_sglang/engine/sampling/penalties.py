"""Penalties count a request's output tokens, each once, whatever path the request took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def cumulate_rows(orchestrator: Any, tokens: Mapping[int, int], rows: int) -> None:
    """Feed one output token each to some rows of SGLang's penalizers, and none to the others.

    SGLang's penalizers (sampling/penaltylib) only know whole batches, so the rows without a
    token are put back as they were.

    Args:
        orchestrator: ``BatchedPenalizerOrchestrator`` of the batch.
        tokens: output token id by batch row.
        rows: number of rows in the batch.
    """
    if not orchestrator.is_required or not tokens:
        return
    device = orchestrator.device
    spared = torch.tensor(
        [row for row in range(rows) if row not in tokens], dtype=torch.int64, device=device
    )
    before = [
        (penalizer, name, state[spared].clone())
        for penalizer in orchestrator.penalizers.values()
        for name, state in vars(penalizer).items()
        if isinstance(state, torch.Tensor) and state.shape[:1] == (rows,)
    ]
    ids = torch.tensor([tokens.get(row, 0) for row in range(rows)], device=device)
    orchestrator.cumulate_output_tokens(ids)
    for penalizer, name, kept in before:
        getattr(penalizer, name)[spared] = kept
