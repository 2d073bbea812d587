"""What the launcher tells the gateway."""

from __future__ import annotations

from pathlib import Path

from ps_sglang.gateway.config import DecodeWorker, GatewayConfig, PrefillWorker
from ps_sglang.launch.prepare import Plan
from ps_sglang.launch.spec import Role


def gateway_config(
    plan: Plan, launcher_key: str | None = None, cluster_key_file: Path | None = None
) -> GatewayConfig:
    """What the gateway must know of a plan; `launcher_key` is the digest of the launcher's key."""
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
        cluster_key_file=_absolute(cluster_key_file),
        model_roots=plan.model_roots,
        admin_host=plan.spec.admin_host,
        admin_port=plan.spec.admin_port,
        limits=plan.spec.limits,
        api_keys=_absolute(plan.spec.api_keys),
        launcher_key=launcher_key,
        no_keys=plan.spec.no_keys,
        tls_cert=_absolute(plan.spec.tls_cert),
        tls_key=_absolute(plan.spec.tls_key),
    )


def _absolute(path: Path | None) -> str | None:
    # Links are kept: who changes the certificate may change where one leads.
    return None if path is None else str(path.absolute())
