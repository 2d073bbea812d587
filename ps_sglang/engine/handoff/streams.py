"""Who waits for a forward pass that still runs, on any device.

Under overlap scheduling the scheduler goes on while the device computes a step. Pages that such a
step writes must not be read, nor be given to another writer, before it is over. A CPU computes a
step before it returns, so there all of this waits for nothing.
"""

from __future__ import annotations

from typing import Any

from ps_sglang.engine.compat.srt import get_disagg
from ps_sglang.engine.hooking import around, before


def launched_steps(scheduler: Any) -> Any:
    """An event of the scheduler's device that is over once all steps launched so far are."""
    event = scheduler.device_module.Event()
    event.record(scheduler.forward_stream)
    return event


def await_launched_steps(scheduler: Any) -> None:
    """Return when no launched step can still write to the KV pool."""
    if scheduler.enable_overlap:
        launched_steps(scheduler).synchronize()


@around(
    "disaggregation.prefill.SchedulerDisaggregationPrefillMixin.maybe_send_cached_prefix_chunk",
    "self", "req", "allow_send",
)  # fmt: skip
def maybe_send_cached_prefix_chunk(
    original: Any, scheduler: Any, req: Any, allow_send: bool = True
) -> None:
    """Around `maybe_send_cached_prefix_chunk`: use no event of CUDA where there is no CUDA.

    Elsewhere the step is waited for, and the stock code is told that there is none.
    """
    if not scheduler.enable_overlap or scheduler.device == "cuda":
        original(scheduler, req, allow_send)
        return
    await_launched_steps(scheduler)
    scheduler.enable_overlap = False
    try:
        original(scheduler, req, allow_send)
    finally:
        scheduler.enable_overlap = True


@before(
    "disaggregation.common.conn.CommonKVSender.send",
    "self", "kv_indices", "state_indices", "num_kv_tokens", "indices_event",
)  # fmt: skip
def send(sender: Any, *_args: Any, **_kwargs: Any) -> None:
    """Before `CommonKVSender.send`: wait for the pages here with NIXL, whose queue does not.

    The other backends wait in the thread that moves them (`TransferKVChunk.wait_event`).
    """
    written = sender._early_send_wait_event
    if written is not None and get_disagg().disaggregation_transfer_backend == "nixl":
        written.synchronize()
