"""One-worker mode: counts and spans of a worker that both prefills and decodes.

To SGLang it is a plain server. `handoff/base_prefix.py` tells what of a prompt is the base's there,
and `lora/segments.py` keeps the adapter out of it.
"""

from __future__ import annotations

import time
from typing import Any

from ps_sglang.engine import events, metrics
from ps_sglang.engine.compat.srt import HEALTH_CHECK_RID_PREFIX
from ps_sglang.engine.hooking import around
from ps_sglang.engine.request_state import base_prefix_len, handoff_state
from ps_sglang.engine.settings import is_worker
from ps_sglang.engine.trace import record_decoded, span_of_prefill


@around(
    "managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor.process_batch_result_prefill",
    "self", "batch", "result",
)  # fmt: skip
def process_batch_result_prefill(original: Any, processor: Any, batch: Any, result: Any) -> None:
    """Around `process_batch_result_prefill`: count the tokens of finished prefills."""
    finishing = [req for req in batch.reqs if req.inflight_middle_chunks <= 0]
    original(processor, batch, result)
    if not is_worker():
        return
    for req in finishing:
        timestamps = handoff_state(req).timestamps
        # One that was retracted is prefilled once more.
        if timestamps.received or req.rid.startswith(HEALTH_CHECK_RID_PREFIX):
            continue
        timestamps.received = time.perf_counter()
        timestamps.held = min(req.cached_tokens, base_prefix_len(req))
        metrics.prefilled(computed=base_prefix_len(req) - timestamps.held, cached=timestamps.held)
        events.record(span_of_prefill(req, timestamps.received))
    record_decoded(batch.reqs)
