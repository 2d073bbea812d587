"""The states of workers as Prometheus metrics, read off the pool when it is asked for them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ps_sglang.gateway.routing.pool import WorkerPool
from ps_sglang.gateway.routing.worker_state import BreakerState
from ps_sglang.gateway.workers.health import HealthMonitor

_STATES = (*(one.value for one in BreakerState), "draining", "refused", "starting")


class WorkerStateMetrics(Collector):
    """One gauge per worker and state, 1 for the state that it is in."""

    def __init__(self, pool: WorkerPool, health: HealthMonitor) -> None:
        self._pool = pool
        self._health = health

    def collect(self) -> Iterator[Metric]:
        """The metrics now."""
        states = GaugeMetricFamily(
            "ps_sglang_gateway_worker_state",
            "1 for the state that the gateway sees a worker in.",
            labels=("worker", "role", "decoder", "state"),
        )
        transitions = CounterMetricFamily(
            "ps_sglang_gateway_breaker_transitions",
            "How often a worker's circuit breaker went into a state.",
            labels=("worker", "state"),
        )
        for worker_state in self._pool:
            worker = worker_state.worker
            labels = (worker.name, worker.role, worker.decoder or "")
            for state in _STATES:
                states.add_metric((*labels, state), float(worker_state.state == state))
            for breaker in BreakerState:
                count = self._health.transitions[worker.name, breaker]
                transitions.add_metric((worker.name, breaker.value), count)
        yield states
        yield transitions
