"""The gateway as an aiohttp application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.gateway import cors
from ps_sglang.gateway.access.authentication import authentication
from ps_sglang.gateway.access.limiter import RequestLimiter
from ps_sglang.gateway.access.own_pages import own_pages_only
from ps_sglang.gateway.bodies import size
from ps_sglang.gateway.bodies.samples import Endpoint
from ps_sglang.gateway.config import GatewayConfig
from ps_sglang.gateway.dispatch.background import Background, cancel
from ps_sglang.gateway.dispatch.descriptors import Descriptors
from ps_sglang.gateway.dispatch.dispatcher import Dispatcher
from ps_sglang.gateway.dispatch.hint_actions import HintActions
from ps_sglang.gateway.dispatch.worker_client import CONNECT_SECONDS, WorkerClient
from ps_sglang.gateway.index.cache_index import CacheIndex
from ps_sglang.gateway.index.collector import IndexMetrics
from ps_sglang.gateway.index.prompts import Prompts
from ps_sglang.gateway.paths import OF_ONE_DECODER
from ps_sglang.gateway.peers.answers import Answers
from ps_sglang.gateway.peers.following import Follower
from ps_sglang.gateway.peers.owner import Owner
from ps_sglang.gateway.peers.peers import OWNER, GatewayPeers
from ps_sglang.gateway.peers.sharing import Sharing
from ps_sglang.gateway.routes import (
    debug,
    engine,
    generation,
    info,
    messages,
    openapi,
    page,
    responses,
)
from ps_sglang.gateway.routes import decoders as decoders_api
from ps_sglang.gateway.routes import leases as leases_api
from ps_sglang.gateway.routes import sessions as sessions_api
from ps_sglang.gateway.routes import workers as workers_api
from ps_sglang.gateway.routes.admin_port import on_their_port
from ps_sglang.gateway.routes.limits import limit_rate
from ps_sglang.gateway.routes.middleware import handle_request, read_whole_body
from ps_sglang.gateway.routes.response_store import ResponseStore
from ps_sglang.gateway.routes.to_owner import by_owner
from ps_sglang.gateway.routing.pool import WorkerPool
from ps_sglang.gateway.routing.router import Router
from ps_sglang.gateway.routing.sessions import TenantSessions
from ps_sglang.gateway.state import GATEWAY, Gateway
from ps_sglang.gateway.telemetry.activity import Activity
from ps_sglang.gateway.telemetry.metrics import GatewayMetrics
from ps_sglang.gateway.telemetry.trace import Traces
from ps_sglang.gateway.workers.decoders import DecoderChanges
from ps_sglang.gateway.workers.health import HealthMonitor
from ps_sglang.gateway.workers.leases import Leases
from ps_sglang.gateway.workers.probe import DEFAULT_TIMING, ProbeTiming
from ps_sglang.gateway.workers.state_metrics import WorkerStateMetrics

if TYPE_CHECKING:
    from ps_sglang.gateway.telemetry.otel import Tracing

_PROXIED = ("/get_model_info", "/model_info", "/get_server_info", "/server_info")


def build_app(config: GatewayConfig, timing: ProbeTiming = DEFAULT_TIMING) -> web.Application:
    """The gateway for a cluster. Serve it with `runner`, which ends a request with its client.

    `timing` says how often workers are probed. Raises UsageError if the file of keys is wrong.
    """
    file = config.cluster_key_file
    key = None if file is None else ClusterKey.load(Path(file))
    prompts = Prompts.load(config.tokenizer, config.chat)
    most = size.most_body_bytes(config.context_length, prompts.longest_token)
    app = web.Application(middlewares=[handle_request], client_max_size=most)
    cors.allow(app, config.cors_origins)
    # Behind CORS, as a browser's preflight has no key. Nobody without one sends a whole body.
    access = (*on_their_port(config), *own_pages_only(config), authentication(config))
    app.middlewares.extend((*access, read_whole_body, limit_rate, *by_owner(config)))

    async def lifespan(app: web.Application) -> AsyncIterator[None]:
        background = Background()
        client = WorkerClient(key)
        async with _http() as http, _to_owner(config) as to_owner:
            gateway = _gateway(config, key, prompts, http, to_owner, client, background, timing)
            app[GATEWAY] = gateway
            await gateway.cache_index.start()
            await gateway.peers.start()
            watch = await _begin(gateway)
            yield
            await cancel(*watch)
            await _end(gateway)
            await gateway.peers.close()
            await gateway.cache_index.stop()
            await background.close()
            client.close()
            gateway.traces.close()
            if gateway.tracing is not None:
                await gateway.tracing.close()

    app.cleanup_ctx.append(lifespan)
    app[responses.RESPONSES] = ResponseStore()
    for prefix in ("", OF_ONE_DECODER):
        _add_routes(app.router, prefix)
    openapi.add_routes(app.router)
    page.add_routes(app)
    workers_api.add_routes(app)
    leases_api.add_routes(app)
    decoders_api.add_routes(app)
    app.router.add_delete("/sessions/{id}", sessions_api.end)
    app.router.add_post("/sessions/{id}/end", sessions_api.end)
    return app


async def _begin(gateway: Gateway) -> list[asyncio.Task[None]]:
    """Know the workers; returns what watches over them."""
    if gateway.follower is not None:
        await gateway.follower.knows_all()
        return []
    await gateway.health.first_probes()
    works = [gateway.leases.watch()]
    if not gateway.peers.is_alone:
        works.append(gateway.owner.watch())
    return [asyncio.create_task(work) for work in works]


async def _end(gateway: Gateway) -> None:
    if gateway.follower is not None:
        gateway.follower.close()
    else:
        await gateway.health.close()


def _peers(config: GatewayConfig) -> GatewayPeers:
    folder = None if config.peers is None else Path(config.peers)
    return GatewayPeers(folder, config.process, config.processes)


@asynccontextmanager
async def _to_owner(config: GatewayConfig) -> AsyncIterator[aiohttp.ClientSession | None]:
    """What a process that is not the owner passes requests on with."""
    if config.process == OWNER:
        yield None
        return
    connector = aiohttp.UnixConnector(
        str(_peers(config).http_socket(OWNER)), limit=0, force_close=True
    )
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, auto_decompress=False
    ) as session:
        yield session


def _gateway(
    config: GatewayConfig,
    key: ClusterKey | None,
    prompts: Prompts,
    http: aiohttp.ClientSession,
    to_owner: aiohttp.ClientSession | None,
    client: WorkerClient,
    background: Background,
    timing: ProbeTiming,
) -> Gateway:
    peers = _peers(config)
    # The others hear of the owner's.
    pool, metrics = WorkerPool(config.workers if peers.is_owner else (), key), GatewayMetrics()
    sessions = TenantSessions(config.limits.max_sessions)
    traces = Traces(metrics)
    cache_index = CacheIndex(prompts, on_span=traces.add, key=key)
    for worker_state in pool:
        cache_index.add(worker_state.worker)
    pool.joined.append(lambda worker_state: cache_index.add(worker_state.worker))
    pool.left.append(lambda worker_state: cache_index.remove(worker_state.name))
    pool.left.append(sessions.leave)
    activity = Activity(traces, cache_index)
    pool.left.append(lambda worker_state: activity.left(worker_state.name))
    router = Router(pool, cache_index, is_aggregated=config.is_aggregated)
    decoder_changes = DecoderChanges(http, pool)
    health = HealthMonitor(
        http, pool, timing, config.context_length, key=key, restore=decoder_changes.restore
    )
    health.recognition.admitted.append(
        lambda worker_state: cache_index.admitted(worker_state.name, worker_state.incarnation)
    )
    owner = Owner(peers, pool, health)
    follower = None if peers.is_owner else Follower(peers, pool, cache_index)
    if follower is None:  # all know the same of workers
        metrics.register(WorkerStateMetrics(pool, health))
        metrics.register(IndexMetrics(cache_index))
    descriptors = Descriptors(client, lambda: len(pool))
    outcomes = health if follower is None else follower
    dispatcher = Dispatcher(client, router, background, metrics, outcomes, traces, descriptors)
    if follower is None:
        health.start(owner.interrupting(dispatcher.interrupt))
    else:
        follower.interrupt = dispatcher.interrupt
    hint_actions = HintActions(dispatcher, pool, background, sessions, cache_index, metrics)
    limiter = RequestLimiter(config.limits, lambda: len(pool.decode()))
    sharing = Sharing(
        peers, pool, router, sessions, limiter, cache_index, hint_actions.abort_session
    )
    peers.answers = Answers(dispatcher, pool, sessions, sharing, metrics, activity)
    return Gateway(
        config=config,
        cluster_key=key,
        http=http,
        client=client,
        background=background,
        pool=pool,
        health=health,
        sessions=sessions,
        cache_index=cache_index,
        router=router,
        descriptors=descriptors,
        limiter=limiter,
        dispatcher=dispatcher,
        metrics=metrics,
        traces=traces,
        hint_actions=hint_actions,
        decoder_changes=decoder_changes,
        tracing=_tracing(config),
        leases=Leases(pool, health.take_requests_from),
        activity=activity,
        peers=peers,
        owner=owner,
        follower=follower,
        to_owner=to_owner,
    )


def _tracing(config: GatewayConfig) -> Tracing | None:
    if config.otlp_endpoint is None:
        return None
    # Its packages are an extra's.
    from ps_sglang.gateway.telemetry.otel import Tracing

    return Tracing(config.otlp_endpoint)


def _http() -> aiohttp.ClientSession:
    # For questions to workers; requests for text go through the WorkerClient. A connection each: a
    # kept one may be closed by the worker just when a question is sent on it.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    # No total timeout: an answer takes as long as it takes.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=True)


def _add_routes(router: web.UrlDispatcher, prefix: str) -> None:
    for endpoint in Endpoint:
        router.add_post(prefix + endpoint.value, generation.handler(endpoint))
    router.add_post(prefix + "/v1/messages", messages.create)
    responses.add_routes(router, prefix)
    engine.add_routes(router, prefix)
    router.add_get(prefix + "/v1/models", info.list_models)
    router.add_get(prefix + "/v1/models/{name}", info.get_model)
    router.add_get(prefix + "/health", info.health)
    router.add_get(prefix + "/health_generate", info.health_generate)
    router.add_get(prefix + "/liveness", info.alive)
    for name in ("/ready", "/readiness"):
        router.add_get(prefix + name, info.ready)
    router.add_get(prefix + "/metrics", info.metrics)
    router.add_get(prefix + "/flush_cache", info.flush_cache)
    router.add_post(prefix + "/flush_cache", info.flush_cache)
    router.add_post(prefix + "/debug/route", debug.route)
    for path in _PROXIED:
        router.add_get(prefix + path, info.from_decoder)
