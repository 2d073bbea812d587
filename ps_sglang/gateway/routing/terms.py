"""Each worker's part of the cost of a prompt, see `cost`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ps_sglang.gateway.index.lookup import PrefixMatch
from ps_sglang.gateway.routing import cost
from ps_sglang.gateway.routing.cost import DecodeTerms, PrefillTerms
from ps_sglang.gateway.routing.worker_state import AnyWorkerState, Decode, Load, Prefill


def _held(matches: Mapping[str, PrefixMatch], one: AnyWorkerState, tokens: float) -> float:
    """Tokens of the base prefix that a worker holds."""
    match = matches.get(one.worker.name)
    return 0 if match is None else min(match.tokens, tokens)


def prefill_terms(
    worker_states: Sequence[Prefill],
    matches: Mapping[str, PrefixMatch],
    tokens: float,
    session_worker: AnyWorkerState | None,
    now: float,
) -> list[PrefillTerms]:
    """Those of prefill workers, of which a conversation may have one already."""
    recent = [_recent(one.load, now) for one in worker_states]
    bearable = cost.TOLERANCE * sum(recent) / len(recent)
    found = []
    for one, work in zip(worker_states, recent, strict=True):
        cached_tokens, load = _held(matches, one, tokens), one.load
        queue = cost.QUEUE_WEIGHT * (load.queued_tokens + cost.REQUEST_TOKENS * load.requests)
        balance = cost.LEVEL_WEIGHT * work + cost.EXCESS_WEIGHT * max(0.0, work - bearable)
        leaves = _leaves(one, session_worker)
        found.append(
            PrefillTerms(one, cached_tokens, tokens - cached_tokens, queue, balance, leaves)
        )
    return found


def _leaves(worker_state: AnyWorkerState, session_worker: AnyWorkerState | None) -> float:
    stays = session_worker is None or session_worker is worker_state
    return 0.0 if stays else cost.LEAVE_TOKENS


def aggregated_terms(terms: DecodeTerms, session_worker: AnyWorkerState | None) -> PrefillTerms:
    """What prefill costs on an aggregated worker, whose other `terms` these are."""
    queued = terms.worker_state.load.queued_tokens
    return PrefillTerms(
        terms.worker_state,
        cached_tokens=terms.cached_tokens,
        new=terms.moved,
        queue=cost.QUEUE_WEIGHT * queued,
        balance=0.0,
        leaves=_leaves(terms.worker_state, session_worker),
    )


def decode_terms(
    worker_states: Sequence[Decode],
    matches: Mapping[str, PrefixMatch],
    tokens: float,
    session_worker: Decode | None,
) -> list[DecodeTerms]:
    """Those of decode workers, of which a conversation may have one already."""
    away = 0.0 if session_worker is None else cost.MOVE_SAME_HOST * cost.LEAVE_TOKENS
    found = []
    for one in worker_states:
        cached_tokens, load = _held(matches, one, tokens), one.load
        waiting = cost.MOVE_SAME_HOST * load.moving_tokens
        work = waiting + cost.DECODE_REQUEST_TOKENS * load.requests
        leaves = 0.0 if one is session_worker else away
        found.append(DecodeTerms(one, cached_tokens, tokens - cached_tokens, work, leaves))
    return found


def _recent(load: Load, now: float) -> float:
    """Prefill work of late; what still waits counts as queue."""
    if not load.recent_tokens:
        return 0.0
    return load.recent_tokens * _left(now - load.recent_at)


def add_recent(load: Load, tokens: float, now: float) -> None:
    """A prefill worker has computed so many tokens now."""
    age = now - load.recent_at
    load.recent_tokens = load.recent_tokens * _left(age) + tokens
    load.recent_at = now


def _left(age: float) -> float:
    return math.exp2(-age / cost.RECENT_HALF_LIFE)
