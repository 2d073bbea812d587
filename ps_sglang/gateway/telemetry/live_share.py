"""What one gateway process knows of its own requests, for the page that shows those of all."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from ps_sglang.gateway.bodies.samples import split_salt
from ps_sglang.gateway.telemetry.activity import Activity, FinishedTurn
from ps_sglang.gateway.telemetry.metrics import GatewayMetrics
from ps_sglang.gateway.telemetry.trace import Trace

Json = dict[str, Any]

MOST_REQUESTS: Final = 64
_LONGEST_TEXT: Final = 200
_SOURCES: Final = "ps_sglang_gateway_base_tokens_total"
_SAVED: Final = "ps_sglang_gateway_saved_tokens_total"


class LiveShare(msgspec.Struct, frozen=True):
    """A process's part of what is shown.

    `requests` describes the oldest of its `running` samples, the oldest first. `turns` are its last
    ones, also the oldest first. `produced` counts output tokens by decode worker. `tokens` are
    prompt tokens by decoder and source since the process began, and what sharing saved.
    """

    running: int
    requests: list[Json]
    turns: list[FinishedTurn]
    produced: dict[str, int]
    tokens: dict[str, dict[str, int]]


encode: Final = msgspec.msgpack.Encoder().encode
decode: Final = msgspec.msgpack.Decoder(LiveShare).decode


def of(activity: Activity, metrics: GatewayMetrics) -> LiveShare:
    """What this process has to show now."""
    running, now = activity.running(), time.monotonic()
    return LiveShare(
        len(running),
        [_request(trace, now) for trace in running[:MOST_REQUESTS]],
        [*activity.turns()],
        dict(activity.produced()),
        _tokens(metrics),
    )


def together(shares: Sequence[LiveShare]) -> LiveShare:
    """What several processes have to show, as if they were one."""
    produced: Counter[str] = Counter()
    tokens: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for share in shares:
        produced.update(share.produced)
        for decoder, counts in share.tokens.items():
            tokens[decoder].update(counts)
    requests = [request for share in shares for request in share.requests]
    return LiveShare(
        sum(share.running for share in shares),
        sorted(requests, key=lambda request: -request["seconds"])[:MOST_REQUESTS],
        sorted((turn for share in shares for turn in share.turns), key=lambda turn: turn.at),
        dict(produced),
        {decoder: dict(counts) for decoder, counts in tokens.items()},
    )


def cut(text: str | None) -> str | None:
    """A text that may be shown, as far as there is room for it."""
    return text if text is None or len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "…"


def _request(trace: Trace, now: float) -> Json:
    return {
        "id": trace.rid,
        "decoder": trace.decoder,
        "session": cut(trace.session),
        "tenant": split_salt(trace.route.prompt.salt)[0],
        "phase": "decode" if trace.route.is_handed_over else "prefill",
        "seconds": round(now - trace.started, 3),
        "prompt_tokens": round(trace.route.decision.tokens),
        "found": trace.route.cached_tokens,
        "produced": trace.events,
        **trace.workers(),
    }


def _tokens(metrics: GatewayMetrics) -> dict[str, dict[str, int]]:
    counts: defaultdict[str, dict[str, int]] = defaultdict(
        lambda: dict.fromkeys(("computed", "tree", "own", "pulled", "saved"), 0)
    )
    for sample in metrics.samples(_SOURCES, _SAVED):
        if sample.name in (_SOURCES, _SAVED):
            source = sample.labels.get("source", "saved")
            counts[sample.labels["decoder"]][source] = round(sample.value)
    return {**counts}
