from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.standin_gateway import StandInGateway, serving

METRICS = """\
# TYPE ps_sglang_prefill_tokens_total counter
ps_sglang_prefill_tokens_total{worker="prefill-0",source="computed"} 300.0
ps_sglang_prefill_tokens_total{worker="prefill-0",source="tree"} 900.0
# TYPE sglang:generation_tokens_total counter
sglang:generation_tokens_total{worker="decode-a",model_name="a"} 40.0
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{worker="prefill-0"} 2.0
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{worker="decode-a"} 1.0
# TYPE sglang:kv_used_tokens gauge
sglang:kv_used_tokens{worker="decode-a"} 20.0
# TYPE sglang:kv_evictable_tokens gauge
sglang:kv_evictable_tokens{worker="decode-a"} 30.0
# TYPE sglang:kv_available_tokens gauge
sglang:kv_available_tokens{worker="decode-a"} 150.0
# TYPE ps_sglang_gateway_base_tokens_total counter
ps_sglang_gateway_base_tokens_total{decoder="a",source="computed"} 100.0
ps_sglang_gateway_base_tokens_total{decoder="a",source="own"} 300.0
# TYPE ps_sglang_gateway_pending_requests gauge
ps_sglang_gateway_pending_requests{decoder="a"} 3.0
"""


class WithMetrics(StandInGateway):
    """A gateway that tells its metrics, and whether it is ready."""

    metrics = METRICS
    ready = True

    def text(self, path: str) -> tuple[int, str] | None:
        match path:
            case "/metrics":
                return 200, self.metrics
            case "/ready":
                return (200, "{}") if self.ready else (503, "{}")
        return None


@pytest.fixture
def gateway() -> Iterator[WithMetrics]:
    running = WithMetrics()
    with serving(running):
        yield running
