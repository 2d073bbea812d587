"""A snapshot as two tables, with rates where there is an earlier one to compare with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ps_sglang.gateway_admin import table
from ps_sglang.status.snapshot import ClusterSnapshot

_WORKERS: Final = (
    "WORKER", "ROLE", "STATE", "REQUESTS", "RUNNING", "QUEUED", "TOKENS/S", "KV USED", "CACHED",
    "LEASE",
)  # fmt: skip
_DECODERS: Final = ("DECODER", "REQUESTS", "PROMPT TOKENS", "TOKENS/S", "HITS")
_NONE: Final = "-"


def lines(now: ClusterSnapshot, before: ClusterSnapshot | None = None) -> Iterator[str]:
    """What a person reads. TOKENS/S is prefilled or generated since `before`, of a decoder what
    prompts had; HITS is the part of prompts that nobody had to compute."""
    yield f"{now.url}: {'ready' if now.ready else 'not ready'}"
    yield ""
    yield from table([_WORKERS, *_worker_rows(now, before)])
    for one in now.workers:
        if one.problem:
            yield f"{one.name}: {one.problem}"
    yield ""
    yield from table([_DECODERS, *_decoder_rows(now, before)])


def _worker_rows(now: ClusterSnapshot, before: ClusterSnapshot | None) -> Iterator[tuple[str, ...]]:
    earlier = {} if before is None else {one.name: one.tokens for one in before.workers}
    for one in now.workers:
        yield (
            one.name,
            one.role,
            one.state,
            str(one.requests),
            _number(one.running),
            _number(one.queued),
            _rate(one.tokens, earlier.get(one.name), now, before),
            _part(one.kv_used),
            str(one.cached_tokens),
            _NONE if one.lease_seconds is None else f"{one.lease_seconds:.0f} s",
        )


def _decoder_rows(
    now: ClusterSnapshot, before: ClusterSnapshot | None
) -> Iterator[tuple[str, ...]]:
    earlier = {} if before is None else {one.name: one.prompt_tokens for one in before.decoders}
    for one in now.decoders:
        yield (
            one.name,
            _number(one.requests),
            _number(one.prompt_tokens),
            _rate(one.prompt_tokens, earlier.get(one.name), now, before),
            _part(one.hit_ratio),
        )


def _rate(
    tokens: float | None,
    earlier: float | None,
    now: ClusterSnapshot,
    before: ClusterSnapshot | None,
) -> str:
    if before is None or tokens is None or earlier is None or tokens < earlier:
        return _NONE  # it is new, or has restarted
    return f"{(tokens - earlier) / max(now.at - before.at, 1e-3):.0f}"


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.0f}"


def _part(value: float | None) -> str:
    return _NONE if value is None else f"{value:.0%}"
