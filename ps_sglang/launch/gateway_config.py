"""What the launcher tells the gateway."""

from __future__ import annotations

from pathlib import Path

from ps_sglang.gateway.config import DecodeWorker, GatewayConfig, PrefillWorker
from ps_sglang.launch.prepare import Plan
from ps_sglang.launch.spec import Role


def gateway_config(plan: Plan, key_file: Path | None = None) -> GatewayConfig:
    """What the gateway must know of a plan, and where the cluster's key is."""
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
        cluster_key_file=key_file and str(key_file),
        model_roots=plan.model_roots,
        admin_host=plan.spec.admin_host,
        admin_port=plan.spec.admin_port,
    )
