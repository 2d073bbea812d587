"""What the launcher tells the gateway."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from ps_sglang.gateway.config import GatewayConfig
from ps_sglang.launch.prepare import Plan


def gateway_config(
    plan: Plan,
    launcher_key: str | None = None,
    cluster_key_file: Path | None = None,
    *,
    process: int = 0,
    peers: Path | None = None,
    restarts: bool = False,
) -> GatewayConfig:
    """What the gateway must know of a plan; its workers join it themselves.

    `launcher_key` is the digest of the launcher's key. It is number `process` of the gateway's, and
    meets the others in the folder `peers`. `restarts`: there was a gateway before it, whose workers
    do not all belong to the launcher.
    """
    return GatewayConfig(
        host=plan.spec.host,
        port=plan.spec.port,
        base=plan.base.name,
        context_length=plan.context_length,
        vocabulary=plan.vocabulary,
        tokenizer=str(plan.base.path),
        chat=plan.chat,
        cors_origins=plan.spec.cors_origins,
        log_format=plan.spec.log_format,
        otlp_endpoint=plan.spec.otlp_endpoint and traces_url(plan.spec.otlp_endpoint),
        is_aggregated=plan.spec.one_worker,
        fingerprint=plan.fingerprint,
        awaits_workers=restarts or plan.spec.gateway_only,
        starting=tuple(dict.fromkeys(name for one in plan.workers for name in one.decoders)),
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
        drain_s=plan.spec.drain_s,
        processes=plan.spec.gateway_processes,
        process=process,
        peers=_absolute(peers),
    )


def traces_url(endpoint: str) -> str:
    """Where a collector takes traces: at /v1/traces, unless its URL has a path of its own."""
    parts = urlsplit(endpoint)
    return parts._replace(path="/v1/traces").geturl() if parts.path in ("", "/") else endpoint


def _absolute(path: Path | None) -> str | None:
    # Links are kept: who changes the certificate may change where one leads.
    return None if path is None else str(path.absolute())
