"""Output tokens that a request has had from another worker are put out again, not chosen.

A stream that lost its worker goes on here. The request runs from its beginning, with the base
prefix pulled as always, and where SGLang has chosen a token, that of the other worker takes its
place. So the decoder computes their KV itself (I1), and grammar, penalties, stop texts, parsers
and counts are where they were on the other worker. Logprobs are those of the tokens put out.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Final

import torch

from ps_sglang.engine.hooking import after, around, before
from ps_sglang.engine.request_state import handoff_state

Forced = dict[int, int]
"""Token ids by row of the batch."""

_forced: Final[ContextVar[Forced | None]] = ContextVar("forced", default=None)
"""Those of the step whose tokens are being chosen."""


@after(
    "model_executor.forward_batch_info.ForwardBatch.init_new",
    "batch", "model_runner", "capture_hidden_mode", "return_hidden_states_before_norm",
    "extend_position_info", "spec_mrope_positions", "kv_loc_plan", "write_cols",
)  # fmt: skip
def init_new(forward_batch: Any, _cls: Any, batch: Any, *_args: Any, **_kwargs: Any) -> None:
    """After `ForwardBatch.init_new`: note which tokens this step must put out.

    Under overlap scheduling the tokens of the step before are not known yet, so they are counted by
    the sequences' lengths.
    """
    if not any(handoff_state(req).forced for req in batch.reqs):
        return
    lengths = batch.seq_lens_cpu.tolist()
    forced: Forced = {}
    for row, (req, length) in enumerate(zip(batch.reqs, lengths, strict=True)):
        ids, number = handoff_state(req).forced, length - len(req.origin_input_ids)
        if 0 <= number < len(ids):  # below 0: a chunk of a prompt, whose token is dropped
            forced[row] = ids[number]
    forward_batch.forced_tokens = forced


@around("model_executor.model_runner.ModelRunner.sample", "self", "logits_output", "forward_batch")
def sample(original: Any, runner: Any, logits_output: Any, forward_batch: Any) -> torch.Tensor:
    """Around `ModelRunner.sample`: put out what the request has had, whatever was chosen."""
    forced: Forced | None = vars(forward_batch).get("forced_tokens")
    if not forced:
        chosen: torch.Tensor = original(runner, logits_output, forward_batch)
        return chosen
    token = _forced.set(forced)
    try:
        chosen = original(runner, logits_output, forward_batch)
    finally:
        _forced.reset(token)
    _replace(chosen, forced)
    return chosen


@before(
    "layers.logprob_processor.OutputLogprobProcessor.compute_logprobs",
    "self", "logprobs", "top_logprobs_nums", "token_ids_logprobs", "batch_next_token_ids",
)  # fmt: skip
def compute_logprobs(
    _processor: Any, _logprobs: Any, _top: Any, _of_ids: Any, chosen: torch.Tensor
) -> None:
    """Before `OutputLogprobProcessor.compute_logprobs`: those of the tokens that are put out."""
    if (forced := _forced.get()) is not None:
        _replace(chosen, forced)


def _replace(chosen: torch.Tensor, forced: Forced) -> None:
    """Put token ids into `chosen` ([batch], int) in place."""
    rows = torch.tensor(list(forced), device=chosen.device)
    chosen[rows] = torch.tensor(list(forced.values()), dtype=chosen.dtype, device=chosen.device)
