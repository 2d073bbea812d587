"""The order in which requests wait: the highest priority first (0 if a request has none), among
equals the longest held prefix. A prefill worker looks into its tree; a decode worker goes by what
the gateway expected of the prefill worker's, see `ps_sglang.priority`.

SGLang's own priority scheduling excludes its policy for long held prefixes (lpm), so the queues
are sorted here. And beyond 128 waiting requests that policy falls back to the order of arrival,
just when a full pool needs it most: conversations come back in the order of their pages' eviction.
"""

from __future__ import annotations

from typing import Any

from ps_sglang.engine.compat.srt import CacheAwarePolicy, match_kv_cache
from ps_sglang.engine.hooking import after, around
from ps_sglang.engine.lora.scheduling import drain
from ps_sglang.engine.request_state import handoff_state
from ps_sglang.priority import decode_priority


def rank(req: Any) -> int:
    """What sorts a request among others on a prefill worker, the first to go first."""
    return -decode_priority(req.priority or 0)


@after(
    "managers.schedule_policy.SchedulePolicy.calc_priority",
    "self", "waiting_queue", "running_batch", "processed_tokens",
)  # fmt: skip
def calc_priority(_result: None, policy: Any, waiting_queue: list[Any], *_: Any, **__: Any) -> None:
    """After `SchedulePolicy.calc_priority`: order the prefill worker's waiting requests."""
    if policy.policy is CacheAwarePolicy.LPM and not policy.waiting_queue_prefix_matched(
        waiting_queue
    ):
        _sort_long_queue(waiting_queue, policy.tree_cache)
    waiting_queue.sort(key=rank)


@around(
    "disaggregation.decode.DecodePreallocQueue.pop_preallocated",
    "self", "rids_to_check", "pp_good_rids", "pp_bad_rids",
)  # fmt: skip
def pop_preallocated(original: Any, queue: Any, *args: Any, **kwargs: Any) -> Any:
    """Around `DecodePreallocQueue.pop_preallocated`: order the requests that wait for room."""
    drain(queue)
    queue.queue.sort(key=lambda waiting: -(waiting.req.priority or 0))
    return original(queue, *args, **kwargs)


def _sort_long_queue(waiting_queue: list[Any], tree: Any) -> None:
    """Sort by the prefix that each request had in the tree when it was looked up, once.

    Looking up all of them at every step would cost too much, and a match that is out of date only
    changes the order.
    """
    for req in waiting_queue:
        state = handoff_state(req)
        if not state.prefix_matched:
            match_kv_cache(req, tree)
            state.prefix_matched = True
    waiting_queue.sort(key=lambda req: -req.num_matched_prefix_tokens)
