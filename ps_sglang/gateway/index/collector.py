"""What the gateway knows about its workers' caches, as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ps_sglang.gateway.index.cache_index import CacheIndex
from ps_sglang.gateway.index.prompt import KINDS


class IndexMetrics(Collector):
    """Metrics of the index, read off when they are asked for."""

    def __init__(self, cache_index: CacheIndex) -> None:
        self._cache_index = cache_index

    def collect(self) -> Iterator[Metric]:
        """The metrics now."""
        live = GaugeMetricFamily(
            "ps_sglang_gateway_index_live",
            "1 if what a worker holds is known by its events, 0 if it is an estimate.",
            labels=("worker",),
        )
        tokens = GaugeMetricFamily(
            "ps_sglang_gateway_index_tokens",
            "Base tokens that a worker holds, by its events.",
            labels=("worker",),
        )
        events = CounterMetricFamily(
            "ps_sglang_gateway_feed",
            "A worker's event stream: batches, replays, snapshots, losses, malformed messages.",
            labels=("worker", "what"),
        )
        for name in self._cache_index.workers:
            source = self._cache_index.source(name)
            live.add_metric((name,), float(source.kind == "events"))
            tokens.add_metric((name,), source.tokens)
            for what in ("batches", "replays", "snapshots", "losses", "malformed"):
                events.add_metric((name, what), source.counts.get(what, 0))
        yield from (live, tokens, events)
        yield self._addressed()
        yield GaugeMetricFamily(
            "ps_sglang_gateway_duplicated_tokens",
            "Base tokens that decode workers hold beyond the first copy among them.",
            value=self._cache_index.duplicated(),
        )

    def _addressed(self) -> Metric:
        addressed = GaugeMetricFamily(
            "ps_sglang_gateway_index_addressed",
            "1 if prompts of this kind find what workers hold, 0 if that is estimated.",
            labels=("prompts",),
        )
        for kind in KINDS:
            addressed.add_metric((kind,), float(self._cache_index.problem(kind) is None))
        return addressed
