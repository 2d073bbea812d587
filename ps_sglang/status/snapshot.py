"""What a gateway tells of its cluster at one moment."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from ps_sglang.errors import UsageError
from ps_sglang.gateway_http import GatewayRefused, GatewayUnreachable, Json, get_text, no_gateway
from ps_sglang.workers.client import WorkersClient

_PREFILLED: Final = "ps_sglang_prefill_tokens_total"
_GENERATED: Final = "sglang:generation_tokens_total"
_BASE_TOKENS: Final = "ps_sglang_gateway_base_tokens_total"
_PENDING: Final = "ps_sglang_gateway_pending_requests"

Metrics = Mapping[str, list[tuple[Mapping[str, str], float]]]


@dataclass(frozen=True)
class WorkerStatus:
    """One worker.

    `requests` are those that the gateway has there; in its engine `queued` ones wait, and `running`
    ones are in a batch. `tokens` is what it has computed since its start: prompt tokens on a
    prefill worker, output tokens on another. `kv_used` is the part of its KV pool that is taken,
    cached tokens included, and `cached_tokens` what the gateway knows it to hold. What its engine
    does not say is None.
    """

    name: str
    role: str
    decoders: tuple[str, ...]
    url: str
    state: str
    problem: str | None
    lease_seconds: float | None
    requests: int
    running: float | None
    queued: float | None
    tokens: float | None
    kv_used: float | None
    cached_tokens: int


@dataclass(frozen=True)
class DecoderStatus:
    """One decoder: unfinished requests, and prompt tokens by where their KV came from."""

    name: str
    requests: float
    sources: Mapping[str, float]

    @property
    def prompt_tokens(self) -> float:
        """Base prefix tokens of all its answered prompts."""
        return sum(self.sources.values())

    @property
    def hit_ratio(self) -> float | None:
        """The part of them that nobody had to compute; None before the first."""
        total = self.prompt_tokens
        return None if not total else 1 - self.sources.get("computed", 0.0) / total


@dataclass(frozen=True)
class ClusterSnapshot:
    """A cluster at one moment; `at` is a monotonic time."""

    url: str
    ready: bool
    workers: tuple[WorkerStatus, ...]
    decoders: tuple[DecoderStatus, ...]
    at: float = field(default_factory=time.monotonic)

    def to_json(self) -> Json:
        """All of it, for programs."""
        decoders = [
            {**asdict(one), "prompt_tokens": one.prompt_tokens, "hit_ratio": one.hit_ratio}
            for one in self.decoders
        ]
        workers = [asdict(one) for one in self.workers]
        return {"url": self.url, "ready": self.ready, "workers": workers, "decoders": decoders}


def read(url: str, timeout_s: float) -> ClusterSnapshot:
    """Ask the gateway at `url`; raises UsageError if none answers."""
    workers = WorkersClient(url, timeout_s).list()
    try:
        metrics = parse(get_text(f"{url}/metrics", timeout_s=timeout_s))
        ready = _is_ready(url, timeout_s)
    except (GatewayRefused, GatewayUnreachable) as error:
        raise UsageError(no_gateway(url, error)) from error
    names = dict.fromkeys(name for worker in workers for name in worker["decoders"])
    return ClusterSnapshot(
        url,
        ready,
        tuple(_worker(worker, metrics) for worker in workers),
        tuple(_decoder(name, metrics) for name in names),
    )


def parse(text: str) -> Metrics:
    """Prometheus' text: the samples of each name with their labels."""
    samples: defaultdict[str, list[tuple[Mapping[str, str], float]]] = defaultdict(list)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name].append((sample.labels, sample.value))
    return samples


def _is_ready(url: str, timeout_s: float) -> bool:
    try:
        get_text(f"{url}/ready", timeout_s=timeout_s)
    except GatewayRefused as error:
        if error.status == 503:
            return False
        raise
    return True


def _worker(worker: Json, metrics: Metrics) -> WorkerStatus:
    name = worker["name"]

    def total(metric: str, **labels: str) -> float | None:
        values = list(_values(metrics, metric, worker=name, **labels))
        return sum(values) if values else None

    pool = [total(f"sglang:kv_{part}_tokens") for part in ("used", "evictable", "available")]
    tokens = total(_PREFILLED, source="computed") if worker["role"] == "prefill" else None
    return WorkerStatus(
        name=name,
        role=worker["role"],
        decoders=tuple(worker["decoders"]),
        url=worker["url"],
        state=worker["state"],
        problem=worker["problem"],
        lease_seconds=worker["lease_seconds"],
        requests=worker["load"]["requests"],
        running=total("sglang:num_running_reqs"),
        queued=total("sglang:num_queue_reqs"),
        tokens=total(_GENERATED) if worker["role"] != "prefill" else tokens,
        kv_used=_used(pool),
        cached_tokens=worker["cache"]["tokens"],
    )


def _used(pool: list[float | None]) -> float | None:
    """Of used, evictable and available tokens the part that is not available."""
    known = [tokens for tokens in pool if tokens is not None]
    total = sum(known, 0.0)
    return 1 - known[2] / total if len(known) == 3 and total else None


def _decoder(name: str, metrics: Metrics) -> DecoderStatus:
    sources: defaultdict[str, float] = defaultdict(float)
    for labels, value in metrics.get(_BASE_TOKENS, ()):  # of each process of the gateway
        if labels.get("decoder") == name:
            sources[labels["source"]] += value
    return DecoderStatus(name, sum(_values(metrics, _PENDING, decoder=name)), dict(sources))


def _values(metrics: Metrics, metric: str, **wanted: Any) -> Iterator[float]:
    for labels, value in metrics.get(metric, ()):
        if wanted.items() <= labels.items():
            yield value
