"""What all handlers of one gateway share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import hdrs, web

from ps_sglang.gateway.bodies.checks import Limits
from ps_sglang.gateway.bodies.samples import Served
from ps_sglang.gateway.config import GatewayConfig
from ps_sglang.gateway.dispatch.background import Background
from ps_sglang.gateway.dispatch.descriptors import Descriptors
from ps_sglang.gateway.dispatch.dispatcher import Dispatcher
from ps_sglang.gateway.dispatch.hint_actions import HintActions
from ps_sglang.gateway.errors import BadRequest, ModelNotFound
from ps_sglang.gateway.index.cache_index import CacheIndex
from ps_sglang.gateway.routing.pool import WorkerPool
from ps_sglang.gateway.routing.router import Router
from ps_sglang.gateway.routing.sessions import Sessions
from ps_sglang.gateway.routing.worker_state import AnyWorkerState
from ps_sglang.gateway.telemetry.metrics import GatewayMetrics
from ps_sglang.gateway.workers.decoders import DecoderChanges
from ps_sglang.gateway.workers.health import HealthMonitor

if TYPE_CHECKING:
    from ps_sglang.gateway.telemetry.otel import Tracing


@dataclass(frozen=True)
class Gateway:
    """The running gateway."""

    config: GatewayConfig
    http: aiohttp.ClientSession
    background: Background
    pool: WorkerPool
    health: HealthMonitor
    sessions: Sessions
    cache_index: CacheIndex
    router: Router
    descriptors: Descriptors
    dispatcher: Dispatcher
    metrics: GatewayMetrics
    hint_actions: HintActions
    decoder_changes: DecoderChanges
    tracing: Tracing | None
    started: int = field(default_factory=lambda: int(time.time()))

    @property
    def served(self) -> Served:
        """What requests are checked against now."""
        limits = Limits(self.config.vocabulary, self.config.context_length)
        return Served(self.pool.decoders, limits, self.cache_index.prompts)

    def workers(self, decoder: str | None) -> tuple[AnyWorkerState, ...]:
        """All workers, or the prefill workers and those of one decoder."""
        return (*self.pool.prefill, *self.pool.decode(decoder))


GATEWAY = web.AppKey("gateway", Gateway)


def model_in_path(request: web.Request) -> str | None:
    """The decoder that a `/models/<name>/...` URL names; raises ModelNotFound."""
    name = request.match_info.get("model")
    served = request.app[GATEWAY].pool.decoders
    if name is not None and name not in served:
        raise ModelNotFound(name, served)
    return name


def worker_headers(request: web.Request) -> dict[str, str]:
    """What of a client's headers goes to workers: their API key, if any, is the clients' too.

    Anthropic's clients send a key as `x-api-key`.
    """
    authorization = request.headers.get(hdrs.AUTHORIZATION)
    if authorization is None and (key := request.headers.get("x-api-key")) is not None:
        authorization = f"Bearer {key}"
    if authorization is None:
        return {}
    if not authorization.isascii() or not authorization.isprintable():
        raise BadRequest("The API key has characters that are not printable ASCII.")
    return {hdrs.AUTHORIZATION: authorization}


def one_model(request: web.Request) -> str:
    """The decoder of a request without a body: by its path, by `?model=`, or the only one."""
    served = request.app[GATEWAY].pool.decoders
    name = model_in_path(request) or request.query.get("model")
    if name is None and len(served) == 1:
        return next(iter(served))
    if name is None:
        raise BadRequest(
            "This path needs a model: use /models/<name>/... or ?model=<name>; served models: "
            f"{', '.join(served)}.",
            param="model",
        )
    if name not in served:
        raise ModelNotFound(name, served)
    return name
