"""Fan-out: requests with a common prefix at the same time cost one prefill.

Several decoders of an agent program often ask for the same prompt at once. A request whose missing
prefix another one is about to compute, or is half way through, stays in the waiting queue and is
passed over; as soon as the tree holds what the two share it is matched again and scheduled. It
waits for another request only as long as that one waits or runs, so the end of a request, whatever
its reason, makes one of those that wait the next to compute.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

from xxhash import xxh3_64_intdigest

from ps_sglang.engine import metrics
from ps_sglang.engine.compat.srt import FAKE_BOOTSTRAP_HOST, match_kv_cache
from ps_sglang.engine.handoff.priority import rank
from ps_sglang.engine.request_state import FanOutWait, base_prefix_len, handoff_state

_LEAST_SHARED: Final = 32
"""Tokens; computing fewer once more costs less than waiting for another request's forward pass."""

_MOST_COMPARED: Final = 128
"""Waiting requests that are compared in a pass, as many as SGLang itself orders by prefix."""


def _pass_over(part: FanOutWait, now: float) -> None:
    """The request waits for another one from now on."""
    if part.since is None:
        part.since = now


def _goes_on(part: FanOutWait, now: float) -> bool:
    """The request waits no more; whether it did."""
    if part.since is None:
        return False
    metrics.prefill_waited()
    part.waited += now - part.since
    part.since = None
    return True


def who_waits(scheduler: Any) -> list[Any]:
    """The waiting requests to pass over now: what they lack is being computed."""
    under_way = list(_under_way(scheduler))
    if not scheduler.waiting_queue or len(scheduler.waiting_queue) + len(under_way) == 1:
        return []
    page = scheduler.tree_cache.page_size
    block = -(-_LEAST_SHARED // page) * page
    computing: dict[int, Any] = {}
    for req in under_way:
        _computes(computing, req, block)
    waits = []
    # By priority, else a request of high priority would wait for one of low priority.
    ordered = sorted(scheduler.waiting_queue, key=rank)
    for req in islice(filter(_takes_part, ordered), _MOST_COMPARED):
        if _waits(scheduler, req, computing, block, page):
            waits.append(req)
        else:
            _computes(computing, req, block)
    return waits


def pass_over(scheduler: Any, waits: Iterable[Any]) -> list[Any]:
    """Note which requests wait; returns those that waited and can go on now."""
    now = time.perf_counter()
    passed = set(map(id, waits))
    for req in waits:
        if (part := handoff_state(req).fan_out) is not None:
            _pass_over(part, now)
    return [
        req
        for req in scheduler.waiting_queue
        if id(req) not in passed
        and (part := handoff_state(req).fan_out) is not None
        and _goes_on(part, now)
    ]


def _waits(scheduler: Any, req: Any, computing: dict[int, Any], block: int, page: int) -> bool:
    part = _part(req, block)
    blocks = _leading(part.blocks, computing)
    if not blocks:
        return False
    first = computing[part.blocks[blocks - 1]]
    prompt, other = req.origin_input_ids, first.origin_input_ids
    shared, most = blocks * block, min(base_prefix_len(req), base_prefix_len(first))
    while shared < most and prompt[shared] == other[shared]:
        shared += 1
    shared = shared // page * page
    lacks = shared - _held_by_tree(scheduler, req)
    # A request that waits already waits for all of it; if it needs nothing else, it saves a pass.
    needs_nothing_else = shared == base_prefix_len(req) // page * page
    return lacks >= block or (lacks > 0 and (part.since is not None or needs_nothing_else))


def _computes(computing: dict[int, Any], req: Any, block: int) -> None:
    for prefix in _part(req, block).blocks:
        computing.setdefault(prefix, req)


def _takes_part(req: Any) -> bool:
    # One that awaits its handshake may never run: no request should wait for it.
    return not req.pending_bootstrap and req.bootstrap_host != FAKE_BOOTSTRAP_HOST


def _under_way(scheduler: Any) -> Iterator[Any]:
    """Requests with tokens yet to come into the tree that are not in the waiting queue."""
    if scheduler.chunked_req is not None:
        yield scheduler.chunked_req
    if scheduler.enable_overlap:
        for batch, _ in scheduler.result_queue:
            yield from batch.reqs


def _held_by_tree(scheduler: Any, req: Any) -> int:
    match_kv_cache(req, scheduler.tree_cache, req.origin_input_ids)
    return int(req.prefix_len)


def _part(req: Any, block: int) -> FanOutWait:
    state = handoff_state(req)
    if state.fan_out is None:
        state.fan_out = FanOutWait(list(_prefixes(req, block)))
    return state.fan_out


def _prefixes(req: Any, block: int) -> Iterator[int]:
    chained = xxh3_64_intdigest(repr((req.cache_salt, req.extra_key)).encode())
    size = req.origin_input_ids.itemsize
    tokens = memoryview(req.origin_input_ids).cast("B")[: base_prefix_len(req) * size]
    step = block * size
    for end in range(step, len(tokens) + 1, step):
        chained = xxh3_64_intdigest(tokens[end - step : end], chained)
        yield chained


def _leading(blocks: list[int], computing: dict[int, Any]) -> int:
    """How many of the first blocks are being computed; those before each are as well."""
    return bisect_left(blocks, True, key=lambda block: block not in computing)
