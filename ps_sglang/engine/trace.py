"""The span of each request: where its time went on this worker, published when it ends."""

from __future__ import annotations

import time
from typing import Any

from ps_sglang.engine import events
from ps_sglang.engine.compat.srt import FAKE_BOOTSTRAP_HOST
from ps_sglang.engine.hooking import after
from ps_sglang.engine.request_state import handoff_state
from ps_sglang.events.messages import Span


@after(
    "disaggregation.prefill.SchedulerDisaggregationPrefillMixin.process_disagg_prefill_inflight_queue",
    "self", "rids_to_check",
)  # fmt: skip
def process_disagg_prefill_inflight_queue(done: list[Any], *_: Any, **__: Any) -> None:
    """After `process_disagg_prefill_inflight_queue`: publish the span of a prefill worker."""
    for req in done:
        if req.bootstrap_host != FAKE_BOOTSTRAP_HOST:
            stats = req.time_stats
            events.record(
                span_of_prefill(req, stats.prefill_finished_time, sent_at=stats.completion_time)
            )


@after(
    "managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor.process_batch_result_decode",
    "self", "batch", "result",
)  # fmt: skip
def process_batch_result_decode(_result: None, _processor: Any, batch: Any, *_: Any) -> None:
    """After `process_batch_result_decode`: publish the span of a decode worker."""
    record_decoded(batch.reqs)


def record_decoded(reqs: list[Any]) -> None:
    """Note first outputs, and publish the spans of requests that have ended."""
    now = time.perf_counter()
    for req in reqs:
        timestamps = handoff_state(req).timestamps
        if not timestamps.first_output and req.output_ids:
            timestamps.first_output = now
        # Under overlap scheduling an ended request is in the next batch as well.
        if req.finished() and not timestamps.is_published and timestamps.received:
            timestamps.is_published = True
            events.record(_of_decode(req, now))


def span_of_prefill(req: Any, computed_at: float, sent_at: float = 0.0) -> Span:
    """The span of a base prefix that was there at `computed_at`, on the decode worker at `sent_at`.

    Both are `time.perf_counter`'s. What was held of it is in the request's timestamps.
    """
    state, stats = handoff_state(req), req.time_stats
    timestamps = state.timestamps
    waited = 0.0 if state.fan_out is None else state.fan_out.waited
    started = stats.forward_entry_time or computed_at  # no forward pass: it took no time
    return Span(
        rid=req.rid,
        role="prefill",
        began=_unix(timestamps.began),
        queue=_between(timestamps.began + waited, started),
        wait=waited,
        prefill=_between(started, computed_at),
        send=_between(computed_at, sent_at),
        computed=state.base_prefix_len - req.cached_tokens,
        held=timestamps.held,
    )


def _of_decode(req: Any, now: float) -> Span:
    state = handoff_state(req)
    timestamps = state.timestamps
    first_output = timestamps.first_output or timestamps.received  # ended without any output
    decode = _between(first_output, now) if timestamps.first_output else 0.0
    output = len(req.output_ids_through_stop)
    if not state.pulls:
        began = _unix(timestamps.received)
        return Span(rid=req.rid, role="decode", began=began, decode=decode, output=output)
    pull_started = req.time_stats.decode_transfer_queue_entry_time
    return Span(
        rid=req.rid,
        role="decode",
        began=_unix(timestamps.began),
        queue=_between(timestamps.began, pull_started),
        pull=_between(pull_started, timestamps.received),
        first_step=_between(timestamps.received, first_output),
        decode=decode,
        held=timestamps.held,
        pulled=timestamps.pulled,
        pulled_bytes=timestamps.pulled_bytes,
        output=output,
    )


def _between(start: float, end: float) -> float:
    # A request that fails skips stages, whose times then stay 0.
    return round(max(end - start, 0.0), 6)


def _unix(timestamp: float) -> float:
    return round(time.time() - time.perf_counter() + timestamp, 6)
