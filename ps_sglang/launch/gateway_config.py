"""What the launcher tells the gateway."""

from __future__ import annotations

from ps_sglang.gateway.config import GatewayConfig
from ps_sglang.launch.prepare import Plan


def gateway_config(plan: Plan, port: int) -> GatewayConfig:
    """What the gateway must know of a plan; its workers join it themselves.

    It listens on `port`, 0 for any free one.
    """
    return GatewayConfig(
        host=plan.spec.host,
        port=port,
        base=plan.base.name,
        context_length=plan.context_length,
        vocabulary=plan.vocabulary,
        tokenizer=str(plan.base.path),
        chat=plan.chat,
        cors_origins=plan.spec.cors_origins,
        is_aggregated=plan.spec.one_worker,
        fingerprint=plan.fingerprint,
    )
