"""Hooks of the prefill worker: fill the cache, never sample, skip what the tree holds whole.

Stock SGLang recomputes at least one token of every prompt to get logits. Nothing uses the
base's logits, so a request whose base prefix is cached whole (or that the decode worker holds
whole) goes from the handshake straight to sending.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ps_sglang.engine import metrics
from ps_sglang.engine.compat.srt import FAKE_BOOTSTRAP_HOST, DisaggregationMode, match_kv_cache
from ps_sglang.engine.handoff import fan_out, streams, transport
from ps_sglang.engine.hooking import around
from ps_sglang.engine.request_state import handoff_state
from ps_sglang.engine.settings import is_worker


@around("disaggregation.prefill.PrefillBootstrapQueue.add", "self", "req", "num_kv_heads")
def add(original: Any, queue: Any, req: Any, num_kv_heads: int) -> None:
    """Around `PrefillBootstrapQueue.add`: the decode worker of a refused request need not wait."""
    original(queue, req, num_kv_heads)
    if req.finished():
        transport.refuse(queue.kv_manager, req.bootstrap_room)


@around("disaggregation.prefill.PrefillBootstrapQueue.create_sender", "self", "req", "num_kv_heads")
def create_sender(original: Any, queue: Any, req: Any, num_kv_heads: int) -> bool:
    """Around `PrefillBootstrapQueue.create_sender`: both workers must have the same tokens."""
    created = bool(original(queue, req, num_kv_heads))
    if created:
        transport.announce(req.disagg_kv_sender, req.origin_input_ids)
    return created


@around("disaggregation.prefill.PrefillBootstrapQueue.pop_bootstrapped", "self")
def pop_bootstrapped(original: Any, queue: Any) -> list[Any]:
    """Around `PrefillBootstrapQueue.pop_bootstrapped`: serve what needs no forward pass."""
    waiting = []
    for req in original(queue):
        if req.pending_bootstrap and not req.origin_input_ids:
            queue.queue.append(req)  # no tokens to prefill ahead of the handshake
        elif _takes_stock_path(req) or not _served_without_forward(queue.scheduler, req):
            waiting.append(req)
    return waiting


@around("managers.scheduler.Scheduler.get_new_batch_prefill", "self", "running_batch")
def get_new_batch_prefill(original: Any, scheduler: Any, running_batch: Any) -> Any:
    """Around `Scheduler.get_new_batch_prefill`: compute a common prefix once."""
    mode = scheduler.disaggregation_mode
    if mode is DisaggregationMode.DECODE or (mode is DisaggregationMode.NULL and not is_worker()):
        return original(scheduler, running_batch)
    waits = fan_out.who_waits(scheduler)
    for req in fan_out.pass_over(scheduler, waits):
        if mode is DisaggregationMode.PREFILL and _served_without_forward(scheduler, req):
            scheduler.waiting_queue.remove(req)
    passed, all_reqs = set(map(id, waits)), scheduler.waiting_queue
    scheduler.waiting_queue = [req for req in all_reqs if id(req) not in passed]
    try:
        return original(scheduler, running_batch)
    finally:
        # In the order of their arrival, as the first to come is to compute first.
        left = scheduler.waiting_queue
        stay, earlier = passed.union(map(id, left)), set(map(id, all_reqs))
        scheduler.waiting_queue = [req for req in all_reqs if id(req) in stay]
        scheduler.waiting_queue += [req for req in left if id(req) not in earlier]


def _takes_stock_path(req: Any) -> bool:
    return bool(req.pending_bootstrap or req.bootstrap_host == FAKE_BOOTSTRAP_HOST)


def _served_without_forward(scheduler: Any, req: Any) -> bool:
    if req.disagg_decode_prefix_len >= len(req.origin_input_ids):
        _send_nothing(scheduler, req)
        metrics.prefill_skipped(cached=0)
        return True
    if _adopt_cached_prefix(scheduler, req):
        handoff_state(req).timestamps.held = len(req.origin_input_ids)
        _send_pages(scheduler, req)
        metrics.prefill_skipped(cached=len(req.origin_input_ids))
        return True
    return False


def _send_nothing(scheduler: Any, req: Any) -> None:
    """End a request whose decode worker holds the base prefix whole."""
    req.cached_tokens = len(req.origin_input_ids)
    _queue_for_transfer(scheduler, req)
    scheduler.disagg_metadata_buffers.set_buf(req)
    req.disagg_kv_sender.send(np.empty(0, dtype=np.int32), None, num_kv_tokens=0)


def _adopt_cached_prefix(scheduler: Any, req: Any) -> bool:
    """Give the request the tree's pages if they cover its whole base prefix; returns whether.

    If not, the request is as it was and goes the normal way.
    """
    tree, prompt = scheduler.tree_cache, req.origin_input_ids
    match_kv_cache(req, tree, prompt)
    if req.prefix_len < len(prompt):
        return False
    req.lock = tree.lock(req.last_node)
    if scheduler.req_to_token_pool.alloc([req]) is None:
        tree.unlock(req.lock)
        req.lock = None
        return False
    pages = tree.prefix_device_indices(req)
    scheduler.req_to_token_pool.write((req.kv.req_pool_idx, slice(0, len(prompt))), pages)
    req.kv.cache_protected_len = req.kv.kv_committed_len = req.kv.kv_allocated_len = len(prompt)
    req.extend_end = len(prompt)
    req.full_untruncated_fill_ids = prompt[:]
    req.cached_tokens = req.cached_tokens_device = len(prompt)
    return True


def _queue_for_transfer(scheduler: Any, req: Any) -> None:
    """Put the request where the stock code puts one whose forward pass is done."""
    req.time_stats.set_prefill_finished_time()
    # The metadata has a slot for the base's token; no decoder ever looks at it.
    req.output_ids.append(0)
    req.hidden_states_tensor = None
    req.output_dsa_topk_indices = None
    scheduler.disagg_prefill_inflight_queue.append(req)
    req.time_stats.set_prefill_transfer_queue_entry_time()


def _send_pages(scheduler: Any, req: Any) -> None:
    _queue_for_transfer(scheduler, req)
    if scheduler.enable_overlap:
        # The step before may still be writing these pages; the sender waits for this event, as
        # in SGLang's own early send (maybe_send_cached_prefix_chunk).
        req.disagg_kv_sender._early_send_wait_event = streams.launched_steps(scheduler)
    scheduler.send_kv_chunk(req, last_chunk=True)


@around(
    "disaggregation.prefill.SchedulerDisaggregationPrefillMixin.process_batch_result_disagg_prefill",
    "self", "batch", "result",
)  # fmt: skip
def process_batch_result(original: Any, scheduler: Any, batch: Any, result: Any) -> None:
    """Around `process_batch_result_disagg_prefill`: count the tokens of finished prefills."""
    finishing = [req for req in batch.reqs if req.inflight_middle_chunks <= 0]
    original(scheduler, batch, result)
    for req in finishing:
        if req.bootstrap_host != FAKE_BOOTSTRAP_HOST:
            computed = len(req.origin_input_ids) - req.cached_tokens
            handoff_state(req).timestamps.held = req.cached_tokens
            metrics.prefilled(computed=computed, cached=req.cached_tokens)
