"""Which adapters may run together: SGLang's limit of slots, kept on a decode worker, and fairly.

A batch holds at most `--max-loras-per-batch` adapters. The base has one of these slots for good:
requests without an adapter, health checks among them, never wait for a slot.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from ps_sglang.engine.compat.srt import DisaggregationMode
from ps_sglang.engine.hooking import after, around, before
from ps_sglang.engine.settings import is_worker

Changed = tuple[tuple[Any, ...], dict[str, Any]] | None
"""Other arguments for the hooked function, positional and by name; None for the same."""


@around("managers.scheduler.Scheduler.can_schedule_lora_req", "self", "req", "running_loras")
def can_schedule_lora_req(
    original: Any, scheduler: Any, req: Any, running_loras: set[str | None]
) -> bool:
    """Around `Scheduler.can_schedule_lora_req`: count the base, and retracted requests.

    A retracted request goes on as soon as there is room, without being asked about its adapter.
    """
    if not is_worker():
        return bool(original(scheduler, req, running_loras))
    running = {None, *running_loras}
    if scheduler.disaggregation_mode is DisaggregationMode.DECODE:
        retracted = scheduler.disagg_decode_prealloc_queue.retracted_queue
        running.update(other.lora_id for other in retracted)
    return bool(original(scheduler, req, running))


@before("lora.lora_manager.LoRAManager.fetch_new_loras", "self", "new_loras", "running_loras")
def fetch_new_loras(
    manager: Any, new_loras: set[str | None], running_loras: Iterable[str | None] = ()
) -> Changed:
    """Before `LoRAManager.fetch_new_loras`: the base keeps its slot."""
    return ((manager, {None, *new_loras}, set(running_loras)), {}) if is_worker() else None


@after("managers.scheduler.Scheduler.init_lora_drainer", "self")
def init_lora_drainer(_result: None, scheduler: Any) -> None:
    """After `Scheduler.init_lora_drainer`: one slot is the base's."""
    if is_worker() and scheduler.lora_drainer is not None:
        scheduler.lora_drainer.max_loras_per_batch -= 1


@before(
    "lora.lora_drainer.LoRADrainer.update_draining_state", "self", "waiting_queue", "running_reqs"
)
def update_draining_state(
    drainer: Any, waiting_queue: list[Any], running_reqs: list[Any]
) -> Changed:
    """Before `LoRADrainer.update_draining_state`: requests without an adapter need no slot."""
    if not is_worker():
        return None
    waiting, running = (
        [req for req in reqs if req.lora_id is not None] for reqs in (waiting_queue, running_reqs)
    )
    return (drainer, waiting, running), {}


def drain(queue: Any) -> None:
    """Have SGLang's drainer look at a decode worker's queue; stock only a plain server's does.

    It lets no more requests into the batch for an adapter whose slot another one has waited for
    longer than `--lora-drain-wait-threshold` seconds.
    """
    scheduler = queue.scheduler
    if not scheduler.enable_lora or scheduler.lora_drainer is None:
        return
    waiting = [_as_waiting(entry.req) for entry in queue.queue]
    running = [
        *scheduler.running_batch.reqs,
        *(entry.req for entry in queue.transfer_queue.queue),
        *scheduler.waiting_queue,
        *queue.retracted_queue,
    ]
    scheduler.lora_drainer.update_draining_state(waiting, running)


def _as_waiting(req: Any) -> SimpleNamespace:
    """What the drainer reads of a waiting request; a decode worker keeps another time of entry."""
    entered = req.time_stats.decode_prealloc_queue_entry_time
    return SimpleNamespace(
        lora_id=req.lora_id, time_stats=SimpleNamespace(wait_queue_entry_time=entered)
    )
