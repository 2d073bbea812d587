"""The gateway's own metrics."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ps_sglang.gateway.routing import Route

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class GatewayMetrics:
    """Counts what clients asked for and got."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "ps_sglang_gateway_requests",
            "Answered generation requests; status 499 means that the client hung up.",
            ("decoder", "route", "status"),
            registry=self._registry,
        )
        self._pending = Gauge(
            "ps_sglang_gateway_pending_requests",
            "Generation requests not yet answered.",
            ("decoder",),
            registry=self._registry,
        )
        self._first_token = Histogram(
            "ps_sglang_gateway_time_to_first_token_seconds",
            "Time from a streamed request to its first event.",
            ("decoder",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._duration = Histogram(
            "ps_sglang_gateway_request_seconds",
            "Time from a request to the end of its answer.",
            ("decoder",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._characters = Counter(
            "ps_sglang_gateway_prompt_characters",
            "Characters of routed prompts; held: the prefill worker was believed to have them.",
            ("worker", "held"),
            registry=self._registry,
        )

    @contextmanager
    def pending(self, decoder: str) -> Iterator[None]:
        """Count a request as pending inside the block."""
        with self._pending.labels(decoder).track_inprogress():
            yield

    def routed(self, route: Route) -> None:
        """A sample is sent to its workers."""
        worker = route.prefill.name
        self._characters.labels(worker, "yes").inc(route.held_characters)
        self._characters.labels(worker, "no").inc(route.new_characters)

    def first_token(self, decoder: str, seconds: float) -> None:
        """A stream gave its first event."""
        self._first_token.labels(decoder).observe(seconds)

    def answered(self, decoder: str, route: str, status: int, seconds: float) -> None:
        """A request got its whole answer. `decoder` is empty if it named none that exists."""
        self._requests.labels(decoder, route, str(status)).inc()
        self._duration.labels(decoder).observe(seconds)

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
