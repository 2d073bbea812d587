"""What all handlers of one gateway share."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.gateway.access.limiter import RequestLimiter
from ps_sglang.gateway.bodies.checks import Limits
from ps_sglang.gateway.bodies.samples import Served
from ps_sglang.gateway.config import GatewayConfig
from ps_sglang.gateway.dispatch.background import Background
from ps_sglang.gateway.dispatch.descriptors import Descriptors
from ps_sglang.gateway.dispatch.dispatcher import Dispatcher
from ps_sglang.gateway.dispatch.hint_actions import HintActions
from ps_sglang.gateway.dispatch.worker_client import WorkerClient
from ps_sglang.gateway.errors import BadRequest, GatewayError, ModelNotFound, NoWorker
from ps_sglang.gateway.index.cache_index import CacheIndex
from ps_sglang.gateway.peers.following import Follower
from ps_sglang.gateway.peers.owner import Owner
from ps_sglang.gateway.peers.peers import GatewayPeers
from ps_sglang.gateway.routing.pool import WorkerPool
from ps_sglang.gateway.routing.router import Router
from ps_sglang.gateway.routing.sessions import TenantSessions
from ps_sglang.gateway.routing.worker_state import AnyWorkerState
from ps_sglang.gateway.telemetry.activity import Activity
from ps_sglang.gateway.telemetry.metrics import GatewayMetrics
from ps_sglang.gateway.telemetry.trace import Traces
from ps_sglang.gateway.workers.decoders import DecoderChanges
from ps_sglang.gateway.workers.health import HealthMonitor
from ps_sglang.gateway.workers.leases import SECONDS as LEASE_SECONDS
from ps_sglang.gateway.workers.leases import Leases

if TYPE_CHECKING:
    from ps_sglang.gateway.telemetry.otel import Tracing


@dataclass(frozen=True)
class Gateway:
    """The running gateway.

    One of several processes that is not the owner is a `follower`, and passes what only the owner
    can do `to_owner`.
    """

    config: GatewayConfig
    cluster_key: ClusterKey | None
    http: aiohttp.ClientSession
    client: WorkerClient
    background: Background
    pool: WorkerPool
    health: HealthMonitor
    sessions: TenantSessions
    cache_index: CacheIndex
    router: Router
    descriptors: Descriptors
    limiter: RequestLimiter
    dispatcher: Dispatcher
    metrics: GatewayMetrics
    traces: Traces
    hint_actions: HintActions
    decoder_changes: DecoderChanges
    tracing: Tracing | None
    leases: Leases
    activity: Activity
    peers: GatewayPeers
    owner: Owner
    follower: Follower | None
    to_owner: aiohttp.ClientSession | None
    started: int = field(default_factory=lambda: int(time.time()))
    began: float = field(default_factory=time.monotonic)
    """The same moment, by a clock that does not jump."""
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it is to stop: it serves on, but is no longer ready."""

    @property
    def limits(self) -> Limits:
        """What engines can take."""
        return Limits(self.config.vocabulary, self.config.context_length)

    def served_to(self, tenant: str) -> Served:
        """What a tenant's requests are checked against now."""
        return Served(self.pool.decoders, self.limits, self.cache_index.prompts, tenant)

    def not_found(self, error: ModelNotFound) -> GatewayError:
        """`error`, unless the model's workers may be about to join: then one to try again on.

        A gateway that has restarted hears of all workers that are there within a lease's time. One
        that starts with its cluster knows which decoders that will have.
        """
        is_awaited = self.config.awaits_workers and time.monotonic() < self.began + LEASE_SECONDS
        starts = error.name in self.config.starting and not self.pool.has_served(error.name)
        if self.config.workers or (self.pool.decoders and not (is_awaited or starts)):
            return error
        return NoWorker(
            f"No worker of {error.name!r} has joined the cluster yet; "
            f"served models: {', '.join(self.pool.decoders) or 'none'}."
        )

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
