"""What the launcher tells the gateway."""

from __future__ import annotations

from urllib.parse import urlsplit

from ps_sglang.gateway.config import DecodeWorker, GatewayConfig, PrefillWorker
from ps_sglang.launch.prepare import Plan
from ps_sglang.launch.spec import Role


def gateway_config(plan: Plan) -> GatewayConfig:
    """What the gateway must know of a plan."""
    return GatewayConfig(
        host=plan.spec.host,
        port=plan.spec.port,
        base=plan.base.name,
        context_length=plan.context_length,
        vocabulary=plan.vocabulary,
        prefill=tuple(
            PrefillWorker(
                worker.name,
                worker.url,
                "127.0.0.1",
                worker.bootstrap_port,
                worker.events.publishes,
                worker.events.control,
            )
            for worker in plan.workers
            if worker.bootstrap_port is not None
        ),
        decode=tuple(
            DecodeWorker(
                worker.name,
                worker.url,
                worker.model_name,
                worker.events.publishes,
                worker.events.control,
                worker.adapters,
                aggregated=worker.role is Role.AGGREGATED,
            )
            for worker in plan.workers
            if worker.role is not Role.PREFILL
        ),
        tokenizer=str(plan.base.path),
        chat=plan.chat,
        cors_origins=plan.spec.cors_origins,
        log_format=plan.spec.log_format,
        otlp_endpoint=plan.spec.otlp_endpoint and traces_url(plan.spec.otlp_endpoint),
    )


def traces_url(endpoint: str) -> str:
    """Where a collector takes traces: at /v1/traces, unless its URL has a path of its own."""
    parts = urlsplit(endpoint)
    return parts._replace(path="/v1/traces").geturl() if parts.path in ("", "/") else endpoint
