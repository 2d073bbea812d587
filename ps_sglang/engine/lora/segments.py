"""One-worker mode: in a prefill step the base prefix is the base's, the rest is the decoder's.

A request's tokens before the boundary token run without an adapter and those from it on with the
request's own (I1). Both go through one forward pass: attention is causal, so no token of the base
prefix sees what an adapter computed. SGLang chooses an adapter for each request; its back ends only
see lengths, so each request is shown to them as two.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Final

from ps_sglang.engine.hooking import around
from ps_sglang.engine.request_state import Request, base_prefix_len
from ps_sglang.engine.settings import is_worker

_reqs: Final[ContextVar[Sequence[Request] | None]] = ContextVar("reqs", default=None)
"""The requests whose batch is being made ready for its forward pass."""


@around(
    "model_executor.forward_batch_info.ForwardBatch.init_new",
    "batch", "model_runner", "capture_hidden_mode", "return_hidden_states_before_norm",
    "extend_position_info", "spec_mrope_positions", "kv_loc_plan", "write_cols",
)  # fmt: skip
def init_new(original: Any, cls: Any, batch: Any, model_runner: Any, **kwargs: Any) -> Any:
    """Around `ForwardBatch.init_new`: it makes the adapters ready, but knows no request."""
    if model_runner.lora_manager is None or not is_worker():
        return original(cls, batch, model_runner, **kwargs)
    token = _reqs.set(batch.reqs)
    try:
        return original(cls, batch, model_runner, **kwargs)
    finally:
        _reqs.reset(token)


@around("lora.lora_manager.LoRAManager.prepare_lora_batch", "self", "forward_batch")
def prepare_lora_batch(original: Any, manager: Any, forward_batch: Any) -> None:
    """Around `LoRAManager.prepare_lora_batch`: leave the adapter out of the base prefix."""
    reqs = _reqs.get()
    if reqs is not None and forward_batch.forward_mode.is_extend():
        forward_batch = _by_segment(forward_batch, reqs)
    original(manager, forward_batch)


def _by_segment(forward_batch: Any, reqs: Sequence[Request]) -> Any:
    """The batch as if the base's and the decoder's part of each request were two requests."""
    lengths: list[int] = []
    adapters: list[str | None] = []
    for adapter, base, done, new in zip(
        forward_batch.lora_ids,
        map(base_prefix_len, reqs),
        forward_batch.extend_prefix_lens_cpu,
        forward_batch.extend_seq_lens_cpu,
        strict=True,
    ):
        ours = min(max(base - done, 0), new)
        if adapter is None or ours == 0:
            lengths.append(new)
            adapters.append(adapter)
            continue
        lengths.append(ours)
        adapters.append(None)
        if ours < new:
            lengths.append(new - ours)
            adapters.append(adapter)
    if adapters == forward_batch.lora_ids:
        return forward_batch
    segmented = copy.copy(forward_batch)
    segmented.lora_ids = adapters
    segmented.batch_size = len(adapters)
    segmented.extend_seq_lens_cpu = lengths
    segmented.extend_seq_lens = forward_batch.extend_seq_lens.new_tensor(lengths)
    return segmented
