"""A request's priority: where requests wait, higher goes first; 0 without one.

SGLang's own priority scheduling excludes its policy for long shared prefixes (lpm), so the queues
are sorted here. Among equals the order stays what it was.
"""

from __future__ import annotations

from typing import Any


def rank(req: Any) -> int:
    """What sorts a request among others, the first to go first."""
    return -int(req.priority or 0)


def calc_priority(_result: None, policy: Any, waiting_queue: list[Any], *_: Any, **__: Any) -> None:
    """After ``SchedulePolicy.calc_priority``: the prefill worker's requests."""
    if not policy.enable_priority_scheduling:
        waiting_queue.sort(key=rank)


def pop_preallocated(original: Any, queue: Any, *args: Any, **kwargs: Any) -> Any:
    """Around ``DecodePreallocQueue.pop_preallocated``: the decode worker's, waiting for room."""
    if not queue.scheduler.enable_priority_scheduling:
        queue.queue.sort(key=lambda waiting: rank(waiting.req))
    return original(queue, *args, **kwargs)
