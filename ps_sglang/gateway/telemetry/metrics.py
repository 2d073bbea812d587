"""The gateway's own metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from ps_sglang.gateway.bodies.engine_errors import PrefillAnswer

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class GatewayMetrics:
    """Counts what clients asked for and got."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        # Each of these finds its metric of given labels.
        self._requests = cache(
            Counter(
                "ps_sglang_gateway_requests",
                "Answered generation requests; status 499 means that the client hung up.",
                ("decoder", "route", "status"),
                registry=self._registry,
            ).labels
        )
        self._pending = cache(
            Gauge(
                "ps_sglang_gateway_pending_requests",
                "Generation requests not yet answered.",
                ("decoder",),
                registry=self._registry,
            ).labels
        )
        self._first_token = cache(
            Histogram(
                "ps_sglang_gateway_time_to_first_token_seconds",
                "Time from a streamed request to its first event.",
                ("decoder",),
                buckets=_SECONDS,
                registry=self._registry,
            ).labels
        )
        self._duration = cache(
            Histogram(
                "ps_sglang_gateway_request_seconds",
                "Time from a request to the end of its answer.",
                ("decoder",),
                buckets=_SECONDS,
                registry=self._registry,
            ).labels
        )
        self._tokens = cache(
            Counter(
                "ps_sglang_gateway_prompt_tokens",
                "Tokens of the base prefixes of answered prompts, by the prefill worker; "
                "held: it had them cached.",
                ("worker", "held"),
                registry=self._registry,
            ).labels
        )
        self._prefetches = cache(
            Counter(
                "ps_sglang_gateway_prefetches",
                "Prompts brought to the decoder that a hint named as the next one.",
                ("decoder", "outcome"),
                registry=self._registry,
            ).labels
        )

        self._stages = cache(
            Histogram(
                "ps_sglang_gateway_stage_seconds",
                "Where requests' time went, by their workers' spans.",
                ("stage",),
                buckets=_SECONDS,
                registry=self._registry,
            ).labels
        )
        self._base_tokens = cache(
            Counter(
                "ps_sglang_gateway_base_tokens",
                "Prompt tokens by workers' spans: computed by the base, held by the tree of the "
                "one that prefills, held by the decode worker's own tree, pulled by it.",
                ("decoder", "source"),
                registry=self._registry,
            ).labels
        )
        self._pulled_bytes = cache(
            Counter(
                "ps_sglang_gateway_pulled_bytes",
                "Bytes of KV that decode workers pulled.",
                ("decoder",),
                registry=self._registry,
            ).labels
        )
        self._saved_tokens = cache(
            Counter(
                "ps_sglang_gateway_saved_tokens",
                "Prompt tokens not computed because another decoder's turn had brought them in.",
                ("decoder",),
                registry=self._registry,
            ).labels
        )
        self._cross_decoder = Gauge(
            "ps_sglang_gateway_cross_decoder_hit_ratio",
            "Of all prompt tokens so far, the part saved by another decoder's turn.",
            registry=self._registry,
        )
        self._prompt_total = self._saved_total = 0

    def register(self, collector: Collector) -> None:
        """Render the metrics of `collector`, too."""
        self._registry.register(collector)

    def pending(self, decoder: str) -> AbstractContextManager[None]:
        """Count a request as pending inside the block."""
        return self._pending(decoder).track_inprogress()

    def served(self, worker: str, answer: PrefillAnswer) -> None:
        """A prompt was answered; `answer` is that of the prefill `worker`."""
        self._tokens(worker, "yes").inc(answer.cached_tokens)
        self._tokens(worker, "no").inc(max(answer.tokens - answer.cached_tokens, 0))

    def trace(
        self,
        decoder: str,
        stages: Mapping[str, float],
        tokens: Mapping[str, int],
        shared: int,
        *,
        is_aggregated: bool = False,
    ) -> None:
        """A request's trace, see `trace.Trace`.

        `shared`: how much of what its workers held another decoder's turn had brought in.
        """
        for stage, seconds in stages.items():
            self._stages(stage).observe(seconds)
        for source in ("computed", "tree", "own", "pulled"):
            if source in tokens:
                self._base_tokens(decoder, source).inc(tokens[source])
        self._pulled_bytes(decoder).inc(tokens.get("pulled_bytes", 0))
        if "computed" in tokens and ("pulled" in tokens or is_aggregated):
            held = tokens["computed"] + tokens["tree"]
            prompt = held if is_aggregated else tokens["own"] + tokens["pulled"]
            saved = min(shared, prompt - tokens["computed"])
            self._saved_tokens(decoder).inc(saved)
            self._prompt_total += prompt
            self._saved_total += saved
            self._cross_decoder.set(self._saved_total / max(self._prompt_total, 1))

    def prefetched(self, decoder: str, outcome: str) -> None:
        """A hint about the next decoder was acted on."""
        self._prefetches(decoder, outcome).inc()

    def first_token(self, decoder: str, seconds: float) -> None:
        """A stream gave its first event."""
        self._first_token(decoder).observe(seconds)

    def answered(self, decoder: str, route: str, status: int, seconds: float) -> None:
        """A request got its whole answer. `decoder` is empty if it named none that exists."""
        self._requests(decoder, route, str(status)).inc()
        self._duration(decoder).observe(seconds)

    def samples(self, *names: str) -> Iterator[Sample]:
        """What the metrics that have samples of these names say now."""
        for family in self._registry.restricted_registry(names).collect():
            yield from family.samples

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
