"""What the page shows: workers, running requests, the base-token tree, sources and times.

All of it has a bounded size, and is made anew once a second at most however many look on. What
workers say of their queues has to be asked of them; SGLang answers that without its scheduler. The
other gateway processes are asked for what they know of their requests.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
import xxhash
from aiohttp import web

from ps_sglang.gateway.bodies.samples import split_salt
from ps_sglang.gateway.errors import GatewayError
from ps_sglang.gateway.index.branches import Branch
from ps_sglang.gateway.peers.messages import OwnShare
from ps_sglang.gateway.routes.forwarding import ask
from ps_sglang.gateway.routing.worker_state import AnyWorkerState
from ps_sglang.gateway.state import GATEWAY, Gateway
from ps_sglang.gateway.telemetry import live_share
from ps_sglang.gateway.telemetry.activity import SECONDS, FinishedTurn
from ps_sglang.gateway.telemetry.live_share import Json, LiveShare, cut

FRESH_SECONDS: Final = 1.0
"""What is shown is at most so old."""
ASK_SECONDS: Final = 1.0
"""A worker that does not say its load in this time shows what it said before, for a while.
A gateway process that does not answer in it is left out."""
STALE_SECONDS: Final = 15.0
MOST_WORKERS: Final = 64
MOST_DECODERS: Final = 64
MOST_BRANCHES: Final = 64


class _Load(msgspec.Struct):
    """What SGLang says of one scheduler."""

    num_running_reqs: int = 0
    num_waiting_reqs: int = 0
    num_used_tokens: int = 0
    max_total_num_tokens: int = 0


class _Loads(msgspec.Struct):
    loads: list[_Load]


class LiveView:
    """The last content that was made, and what workers last said."""

    def __init__(self) -> None:
        self._content = b""
        self._made = -math.inf
        self._making = asyncio.Lock()
        self._loads: dict[AnyWorkerState, tuple[float, _Load]] = {}

    async def content(self, app: web.Application) -> bytes:
        """The JSON that is shown now."""
        async with self._making:
            if time.monotonic() - self._made > FRESH_SECONDS:
                gateway = app[GATEWAY]
                shares, _ = await asyncio.gather(_shares(gateway), self._ask(gateway))
                self._content = msgspec.json.encode(self._describe(gateway, shares))
                self._made = time.monotonic()
        return self._content

    async def _ask(self, gateway: Gateway) -> None:
        """Have the workers say their loads."""
        workers = [one for one in gateway.pool if one.can_be_asked][:MOST_WORKERS]
        answers = await asyncio.gather(*(_load_of(gateway, one) for one in workers))
        now = time.monotonic()
        self._loads = {
            worker: (since, load)
            for worker, (since, load) in self._loads.items()
            if now - since < STALE_SECONDS
        } | {
            worker: (now, load)
            for worker, load in zip(workers, answers, strict=True)
            if load is not None
        }

    def _describe(self, gateway: Gateway, shares: Sequence[LiveShare]) -> Json:
        workers = [*gateway.pool]
        share = live_share.together(shares)
        return {
            "time": time.time(),
            "started": gateway.started,
            "base": gateway.config.base,
            "decoders": [*gateway.pool.decoders][:MOST_DECODERS],
            "hidden_processes": gateway.peers.count - len(shares),
            "workers": [
                self._worker(gateway, one, share.produced) for one in workers[:MOST_WORKERS]
            ],
            "hidden_workers": max(len(workers) - MOST_WORKERS, 0),
            "requests": share.requests,
            "hidden_requests": share.running - len(share.requests),
            "tokens": {name: share.tokens[name] for name in sorted(share.tokens)[:MOST_DECODERS]},
            "turns": _turns(share.turns),
            "tree": _tree(gateway, share.turns),
        }

    def _worker(self, gateway: Gateway, state: AnyWorkerState, produced: Mapping[str, int]) -> Json:
        worker = state.worker
        cache = gateway.cache_index.source(worker.name)
        _, load = self._loads.get(state, (0.0, None))
        capacity = 0 if state.facts is None else state.facts.capacity
        served = [one.name for one in gateway.pool.decoders.values() if state in one.workers]
        return {
            "name": worker.name,
            "role": worker.role,
            "decoders": served[:MOST_DECODERS],
            "state": state.state,
            "problem": cut(state.problem or cache.problem),
            "requests": state.load.requests,
            "queued_tokens": state.load.queued_tokens,
            "running": None if load is None else load.num_running_reqs,
            "waiting": None if load is None else load.num_waiting_reqs,
            "used_tokens": None if load is None else load.num_used_tokens,
            "cached_tokens": cache.tokens,
            "capacity": (load and load.max_total_num_tokens) or capacity,
            "computed": gateway.activity.computed[worker.name],
            "produced": produced.get(worker.name, 0),
        }


async def _shares(gateway: Gateway) -> list[LiveShare]:
    """What this process has to show, and each other one that answers."""
    answers = await gateway.peers.ask(OwnShare(), ASK_SECONDS)
    own = live_share.of(gateway.activity, gateway.metrics)
    return [own, *(live_share.decode(answer.content) for answer in answers)]


async def _load_of(gateway: Gateway, state: AnyWorkerState) -> _Load | None:
    try:
        async with asyncio.timeout(ASK_SECONDS):
            answer = await ask(gateway, state, "GET", "/v1/loads?include=core")
        assert isinstance(answer.body, bytes), "it was read as a whole"
        loads = msgspec.json.decode(answer.body, type=_Loads).loads
    except (GatewayError, TimeoutError, msgspec.DecodeError):
        return None
    return _Load(
        sum(one.num_running_reqs for one in loads),
        sum(one.num_waiting_reqs for one in loads),
        sum(one.num_used_tokens for one in loads),
        sum(one.max_total_num_tokens for one in loads),
    )


def _turns(turns: Sequence[FinishedTurn]) -> Json:
    """How long the last turns took, by decoder and in all."""
    names = sorted({turn.decoder for turn in turns})[:MOST_DECODERS]
    return {
        "seconds": SECONDS,
        "all": _times(turns),
        "decoders": {
            name: _times([turn for turn in turns if turn.decoder == name]) for name in names
        },
    }


def _times(turns: Sequence[FinishedTurn]) -> Json:
    firsts = [turn.first_token for turn in turns if turn.first_token is not None]
    return {
        "count": len(turns),
        "first_token": _quantiles(firsts),
        "turn": _quantiles([turn.seconds for turn in turns]),
    }


def _quantiles(values: Iterable[float]) -> Json:
    """The median and the 95th percentile, each one of the values; None without any."""
    ordered = sorted(values)

    def at(share: float) -> float | None:
        return round(ordered[math.ceil(share * len(ordered)) - 1], 6) if ordered else None

    return {"p50": at(0.5), "p95": at(0.95)}


def _tree(gateway: Gateway, turns: Sequence[FinishedTurn]) -> Json:
    index = gateway.cache_index
    trunk = index.branches((turn.use for turn in turns if turn.use is not None), MOST_BRANCHES)
    return {"problem": cut(index.prompts.problem), **_branches(trunk)}


def _branches(branch: Branch) -> Json:
    return {
        "below": branch.below,
        "hidden": branch.hidden,
        "branches": [_branch(one) for one in branch.branches],
    }


def _branch(branch: Branch) -> Json:
    tenant, salt = split_salt(branch.salt)
    return {
        "tenant": tenant,
        "salt": _digest(salt) if salt else "",
        "excerpt": branch.excerpt,
        "tokens": branch.tokens,
        "held": branch.held,
        "used": branch.used,
        **_branches(branch),
    }


def _digest(salt: str) -> str:
    """A client's salt may be its secret: it is only told from others."""
    return xxhash.xxh3_64_hexdigest(salt.encode("utf-8", "replace"))[:6]


LIVE = web.AppKey("live", LiveView)
