"""Hooks of the decode worker: take over the base prefix, read the boundary token, sample first.

SGLang's PD mode (disaggregation/decode.py) lets the prefill worker sample the first output
token and hands it over with the KV. Here the handed-over token is dropped, `seqlen - 1` tokens
count as committed from the start, and the decoder's first step reads the boundary token. The
request then looks like any decoding request, so chunking, retraction, overlap scheduling,
sampling, grammars and logprobs are stock.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from ps_sglang.engine import metrics
from ps_sglang.engine.compat.srt import FAKE_BOOTSTRAP_HOST, prepare_abort
from ps_sglang.engine.handoff import streams, transport
from ps_sglang.engine.handoff.base_prefix import as_handed_over
from ps_sglang.engine.hooking import around
from ps_sglang.engine.request_state import awaits_first_output, base_prefix_len, handoff_state
from ps_sglang.engine.sampling.penalties import count_outputs, recount_outputs
from ps_sglang.engine.trace import record_decoded

if TYPE_CHECKING:
    from collections.abc import Iterator


@around(
    "disaggregation.decode.DecodePreallocQueue.add",
    "self", "req", "is_retracted", "is_rebootstrap",
)  # fmt: skip
def add(
    original: Any, queue: Any, req: Any, is_retracted: bool = False, is_rebootstrap: bool = False
) -> None:
    """Around `DecodePreallocQueue.add`: the base must not recompute a decoder's tokens.

    A pause with mode `retract` sends requests back to the prefill worker to recompute prompt
    and output under new weights. Here that would put the base's KV where the decoder's belongs
    (invariants I1, I4), so such a request ends by name.
    """
    if not is_rebootstrap:
        original(queue, req, is_retracted=is_retracted)
        return
    reason = (
        "the request was retracted for a weight update, which a PrefillShare decoder cannot "
        "resume: send it again"
    )
    prepare_abort(req, reason, status_code=HTTPStatus.CONFLICT)
    queue.scheduler.output_streamer.stream_output([req], req.return_logprob)


@around("disaggregation.decode.DecodePreallocQueue._pre_alloc_fill_len", "req")
def pre_alloc_fill_len(_original: Any, req: Any) -> int:
    """Around `DecodePreallocQueue._pre_alloc_fill_len`: leave out the next input token."""
    return int(req.seqlen) - 1


@around("disaggregation.decode.DecodePreallocQueue._rebootstrap_prefill_len", "req")
def prefill_len(_original: Any, req: Any) -> int:
    """Around `DecodePreallocQueue._rebootstrap_prefill_len`: count the tokens to hand over."""
    return base_prefix_len(req)


@around(
    "disaggregation.decode.DecodePreallocQueue._required_admission_tokens",
    "self", "req", "allocated_tokens", "prefix_len", "retractable_tokens",
)  # fmt: skip
def required_admission_tokens(
    original: Any, queue: Any, req: Any, allocated_tokens: int, prefix_len: int,
    retractable_tokens: int,
) -> int:  # fmt: skip
    """Around `DecodePreallocQueue._required_admission_tokens`: ask for no more than the pool has.

    The stock estimate adds room to grow (`--num-reserved-decode-tokens`); where that exceeds
    an empty pool the request would wait for ever. It may have the pool to itself instead.
    """
    estimate = int(original(queue, req, allocated_tokens, prefix_len, retractable_tokens))
    whole_pool = int(queue.max_total_num_tokens) - prefix_len
    return min(estimate, max(allocated_tokens, whole_pool))


@around(
    "disaggregation.decode.DecodePreallocQueue._send_kv_metadata",
    "self", "decode_req", "kv_indices", "page_size", "state_indices", "metadata_kwargs",
)  # fmt: skip
def send_kv_metadata(
    original: Any, queue: Any, decode_req: Any, kv_indices: Any, page_size: int,
    state_indices: Any = None, **kwargs: Any,
) -> None:  # fmt: skip
    """Around `DecodePreallocQueue._send_kv_metadata`: ask for the delta, or for nothing.

    The slots that the delta goes to may be those of a request that has just finished. Under overlap
    scheduling a redundant step of it can still write one of them, and a decoder's row would stay in
    the tree as the base's (invariant I2).
    """
    req = decode_req.req
    if len(kv_indices) > 0:
        streams.await_launched_steps(queue.scheduler)
    transport.expect(decode_req.kv_receiver, req.origin_input_ids[: base_prefix_len(req)])
    original(queue, decode_req, kv_indices, page_size, state_indices, **kwargs)
    if req.bootstrap_host == FAKE_BOOTSTRAP_HOST:
        return
    held = kwargs["decode_prefix_len"]
    timestamps = handoff_state(req).timestamps
    timestamps.held = held
    if len(kv_indices) == 0 and transport.holds_everything(decode_req.kv_receiver):
        _fill_metadata(queue.metadata_buffers, decode_req, cached=held)
        metrics.handoff_skipped(tokens=held)
    else:
        pages = -(-len(kv_indices) // page_size)
        size = pages * queue.kv_manager.kv_item_lens_sum
        timestamps.pulled, timestamps.pulled_bytes = len(kv_indices), size
        metrics.handoff_started(pulled=len(kv_indices), held=held, size=size)


def _fill_metadata(buffers: Any, decode_req: Any, *, cached: int) -> None:
    """Write what a prefill worker would have sent beside the pages (MetadataBuffers.set_buf)."""
    slot = decode_req.metadata_buffer_index
    buffers.cached_tokens[slot].zero_()
    buffers.cached_tokens[slot][0] = cached
    buffers.bootstrap_room[slot, 0] = decode_req.req.bootstrap_room


@around("disaggregation.decode.DecodeTransferQueue._commit_transfer_to_req", "self", "decode_req")
def commit_transfer(original: Any, queue: Any, decode_req: Any) -> None:
    """Around `DecodeTransferQueue._commit_transfer_to_req`: drop the base's output token.

    The base model never samples: its token, logprobs and reasoning state are left out. What
    stays is the count of prompt tokens that were not computed for this request.
    """
    req = decode_req.req
    with _without_first_output(req):
        original(queue, decode_req)
    handoff_state(req).timestamps.received = time.perf_counter()
    _account_cached_tokens(req)


@contextmanager
def _without_first_output(req: Any) -> Iterator[None]:
    requested = req.return_logprob, req.return_sampling_mask
    reasoning = {name: getattr(req, name) for name in _REASONING_STATE}
    outputs = len(req.output_ids)
    req.return_logprob = req.return_sampling_mask = False
    try:
        yield
    finally:
        req.return_logprob, req.return_sampling_mask = requested
        for name, value in reasoning.items():
            setattr(req, name, value)
        del req.output_ids[outputs:]


_REASONING_STATE = (
    "reasoning_tokens",
    "_is_reasoning_over",
    "_think_end_match_len",
    "_think_start_match_len",
)


def _account_cached_tokens(req: Any) -> None:
    """Split `cached_tokens` into what this worker's tree held and what the base's tree held."""
    held_here = min(handoff_state(req).timestamps.held, req.cached_tokens)
    req.cached_tokens_device = held_here
    req.cached_tokens_host = req.cached_tokens - held_here
    # The prefill worker's count is the truth; the stock code would add this worker's hit to it.
    req.already_computed = base_prefix_len(req)


@around(
    "disaggregation.decode_schedule_batch_mixin.ScheduleBatchDisaggregationDecodeMixin.prepare_for_prebuilt",
    "self",
)  # fmt: skip
def prepare_for_prebuilt(original: Any, batch: Any) -> None:
    """Around `ScheduleBatch.prepare_for_prebuilt`: prefilled are n-1 tokens, one is to decode."""
    with as_handed_over(batch.reqs):
        original(batch)
    recount_outputs(batch.sampling_info.penalizer_orchestrator, batch.reqs)


@around(
    "disaggregation.decode_schedule_batch_mixin.ScheduleBatchDisaggregationDecodeMixin.process_prebuilt",
    "self", "future_map",
)  # fmt: skip
def process_prebuilt(original: Any, batch: Any, future_map: Any) -> None:
    """Around `ScheduleBatch.process_prebuilt`: the boundary token is the next input.

    The grammar describes the output, so it must not see the boundary token.
    """
    fresh = [(req, req.grammar) for req in batch.reqs if awaits_first_output(req)]
    for req, _ in fresh:
        req.grammar = None
    try:
        with as_handed_over(batch.reqs):
            original(batch, future_map)
    finally:
        for req, grammar in fresh:
            req.grammar = grammar


@around(
    "managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor.process_batch_result_prebuilt",
    "self", "batch",
)  # fmt: skip
def process_batch_result_prebuilt(original: Any, processor: Any, batch: Any) -> None:
    """Around `BatchResultProcessor.process_batch_result_prebuilt`: stream no empty chunk.

    Only requests that end here (aborted, or asked for no tokens) or that come back from a
    retraction take the stock path; for the others it would stream an empty first chunk.
    """
    all_reqs = batch.reqs
    batch.reqs = [req for req in all_reqs if not _starts_decoding(req)]
    for req in all_reqs:
        if _starts_decoding(req):
            req.time_stats.set_decode_prebuilt_finish_time()
    try:
        if batch.reqs:
            original(processor, batch)
    finally:
        batch.reqs = all_reqs
    record_decoded(all_reqs)


def _starts_decoding(req: Any) -> bool:
    ends_at_once = req.to_finish is not None or req.sampling_params.max_new_tokens == 0
    return awaits_first_output(req) and not req.finished() and not ends_at_once


@around("managers.schedule_batch.ScheduleBatch.cumulate_penalty_output_tokens", "self")
def cumulate_penalty_output_tokens(original: Any, batch: Any) -> None:
    """Around `ScheduleBatch.cumulate_penalty_output_tokens`: count outputs only, each once.

    With no output yet the stock code counts the last prompt token, which is the boundary token.
    """
    if all(handoff_state(req).pulls for req in batch.reqs):
        count_outputs(batch.sampling_info.penalizer_orchestrator, batch.reqs)
    else:
        original(batch)  # not a decode worker


@around("mem_cache.common.release_kv_cache", "req", "tree_cache", "checkpoint")
def release_kv_cache(original: Any, req: Any, tree_cache: Any, *, checkpoint: bool) -> None:
    """Around `mem_cache.common.release_kv_cache`: free a row that holds no token.

    A prompt of one token has an empty base prefix, so its row is registered while it holds
    nothing; a prefill worker that had nothing to compute never took a row.
    """
    if req.kv.kv_allocated_len > 0 or tree_cache.supports_mamba():
        original(req, tree_cache, checkpoint=checkpoint)
        return
    tree_cache.unlock(req.lock)
    req.lock = None
    if req.kv.holds_kv:
        tree_cache.req_to_token_pool.free(req)
