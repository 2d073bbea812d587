"""Penalties count a request's output tokens, each once, whatever path the request took."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from ps_sglang.engine.compat.srt import BatchedMinNewTokensPenalizer


def count_outputs(orchestrator: Any, reqs: Sequence[Any]) -> None:
    """Before a decode step: count what each request has put out since the step before.

    Under overlap scheduling a step is prepared before the last one's token is known. Such a token
    counts towards `min_new_tokens` at once, and is penalised from the step after.
    """
    tokens, unknown = {}, set()
    for row, req in enumerate(reqs):
        counted = req.counted_outputs
        if counted < len(req.output_ids):
            tokens[row] = req.output_ids[counted]
            req.counted_outputs = counted + 1
        elif req.decode_batch_idx > 0:  # decode steps taken since the request (re)started
            unknown.add(row)
    cumulate_rows(orchestrator, tokens, len(reqs), unknown)


def recount_outputs(orchestrator: Any, reqs: Sequence[Any]) -> None:
    """When sampling state is made anew: count what retracted requests had put out.

    All but the last token, which `count_outputs` counts at the next step.
    """
    for row, req in enumerate(reqs):
        req.counted_outputs = max(len(req.output_ids) - 1, 0)
        for token in req.output_ids[: req.counted_outputs]:
            cumulate_rows(orchestrator, {row: token}, len(reqs))


def cumulate_rows(
    orchestrator: Any, tokens: Mapping[int, int], rows: int, unknown: Collection[int] = ()
) -> None:
    """Give one output token each to some rows of SGLang's penalizers, and none to the others.

    SGLang's penalizers (sampling/penaltylib) only know whole batches, so the rows without a token
    are put back as they were. `orchestrator` is the batch's `BatchedPenalizerOrchestrator` of
    `rows` rows. `tokens` has an output token id by batch row, and `unknown` the rows with one more
    output token, which is not known yet.
    """
    if not orchestrator.is_required or not (tokens or unknown):
        return
    device = orchestrator.device
    saved = []
    for penalizer in orchestrator.penalizers.values():
        counts_only = isinstance(penalizer, BatchedMinNewTokensPenalizer)
        spared = [
            row for row in range(rows) if row not in tokens and not (counts_only and row in unknown)
        ]
        index = torch.tensor(spared, dtype=torch.int64, device=device)
        saved += [
            (penalizer, name, index, state[index].clone())
            for name, state in vars(penalizer).items()
            if isinstance(state, torch.Tensor) and state.shape[:1] == (rows,)
        ]
    ids = torch.tensor([tokens.get(row, 0) for row in range(rows)], device=device)
    orchestrator.cumulate_output_tokens(ids)
    for penalizer, name, index, values in saved:
        getattr(penalizer, name)[index] = values
