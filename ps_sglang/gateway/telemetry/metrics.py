"""The gateway's own metrics of requests; those of their traces are in `trace_metrics`.

A `decoder` label is the name of a decoder that is served, or empty; a `reason` is one of
`reasons`. So a client cannot make new labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from ps_sglang.gateway.bodies.engine_errors import PrefillAnswer
from ps_sglang.gateway.telemetry.reasons import Cancel, Rejection, Retry
from ps_sglang.gateway.telemetry.trace_metrics import SECONDS, TraceMetrics

_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5, 5)


class GatewayMetrics:
    """Counts what clients asked for and got."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.traces = TraceMetrics(registry)
        # Each of these finds its metric of given labels.
        self._requests = cache(
            Counter(
                "ps_sglang_gateway_requests",
                "Answered generation requests; status 499 means that the client hung up.",
                ("decoder", "route", "status"),
                registry=registry,
            ).labels
        )
        self._pending = cache(
            Gauge(
                "ps_sglang_gateway_pending_requests",
                "Generation requests not yet answered.",
                ("decoder",),
                registry=registry,
            ).labels
        )
        self._open_streams = cache(
            Gauge(
                "ps_sglang_gateway_open_streams",
                "Streams that have begun and not ended.",
                ("decoder",),
                registry=registry,
            ).labels
        )
        self._first_token = cache(
            Histogram(
                "ps_sglang_gateway_time_to_first_token_seconds",
                "Time from a streamed request to its first event.",
                ("decoder",),
                buckets=SECONDS,
                registry=registry,
            ).labels
        )
        self._inter_token = cache(
            Histogram(
                "ps_sglang_gateway_inter_token_latency_seconds",
                "Time between the events of a stream, one for each token unless the workers were "
                "given another --stream-interval; those that come together count as one.",
                ("decoder",),
                buckets=_TOKEN_SECONDS,
                registry=registry,
            ).labels
        )
        self._duration = cache(
            Histogram(
                "ps_sglang_gateway_request_seconds",
                "Time from a request to the end of its answer.",
                ("decoder",),
                buckets=SECONDS,
                registry=registry,
            ).labels
        )
        self._tokens = cache(
            Counter(
                "ps_sglang_gateway_prompt_tokens",
                "Tokens of the base prefixes of answered prompts, by the prefill worker; "
                "held: it had them cached.",
                ("worker", "held"),
                registry=registry,
            ).labels
        )
        self._prefetches = cache(
            Counter(
                "ps_sglang_gateway_prefetches",
                "Prompts brought to the decoder that a hint named as the next one.",
                ("decoder", "outcome"),
                registry=registry,
            ).labels
        )
        self._retries = Counter(
            "ps_sglang_gateway_retries",
            "Samples sent to other workers.",
            ("reason",),
            registry=registry,
        )
        self._continued = cache(
            Counter(
                "ps_sglang_gateway_continued_streams",
                "Streams that continued on another worker when theirs was lost.",
                ("decoder",),
                registry=registry,
            ).labels
        )
        self._cancels = Counter(
            "ps_sglang_gateway_cancels",
            "Generation requests ended before their answer was complete.",
            ("reason",),
            registry=registry,
        )
        self._rejections = Counter(
            "ps_sglang_gateway_rejections",
            "Requests of any route that were refused.",
            ("reason",),
            registry=registry,
        )
        # A rate needs a first value: each reason counts from 0, not from when it first happens.
        for counter, reasons in (
            (self._retries, Retry),
            (self._cancels, Cancel),
            (self._rejections, Rejection),
        ):
            for reason in reasons:
                counter.labels(reason)

    def register(self, collector: Collector) -> None:
        """Render the metrics of `collector`, too."""
        self._registry.register(collector)

    def pending(self, decoder: str) -> AbstractContextManager[None]:
        """Count a request as pending inside the block."""
        return self._pending(decoder).track_inprogress()

    def open_stream(self, decoder: str) -> AbstractContextManager[None]:
        """Count a stream as open inside the block."""
        return self._open_streams(decoder).track_inprogress()

    def served(self, worker: str, answer: PrefillAnswer) -> None:
        """A prompt was answered; `answer` is that of the prefill `worker`."""
        self._tokens(worker, "yes").inc(answer.cached_tokens)
        self._tokens(worker, "no").inc(max(answer.tokens - answer.cached_tokens, 0))

    def prefetched(self, decoder: str, outcome: str) -> None:
        """A hint about the next decoder was acted on."""
        self._prefetches(decoder, outcome).inc()

    def first_token(self, decoder: str, seconds: float) -> None:
        """A stream gave its first event."""
        self._first_token(decoder).observe(seconds)

    def next_token(self, decoder: str, seconds: float) -> None:
        """A stream gave its next event, so long after the one before."""
        self._inter_token(decoder).observe(seconds)

    def answered(self, decoder: str, route: str, status: int, seconds: float) -> None:
        """A request got its whole answer. `decoder` is empty if it named none that exists."""
        self._requests(decoder, route, str(status)).inc()
        self._duration(decoder).observe(seconds)

    def retried(self, reason: Retry) -> None:
        """A sample goes to other workers."""
        self._retries.labels(reason).inc()

    def continued(self, decoder: str) -> None:
        """A stream that has begun continues on another worker."""
        self._continued(decoder).inc()

    def cancelled(self, reason: Cancel) -> None:
        """A request was ended before its time."""
        self._cancels.labels(reason).inc()

    def rejected(self, reason: Rejection) -> None:
        """A request was refused."""
        self._rejections.labels(reason).inc()

    def samples(self, *names: str) -> Iterator[Sample]:
        """What the metrics that have samples of these names say now."""
        for family in self._registry.restricted_registry(names).collect():
            yield from family.samples

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
