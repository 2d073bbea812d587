"""The routes that tell about the cluster: models, health, metrics, what SGLang's clients ask."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from ps_sglang.gateway.access.authentication import principal_of
from ps_sglang.gateway.config import Worker
from ps_sglang.gateway.errors import ModelNotFound, WorkerUnreachable, reaching, require_process
from ps_sglang.gateway.paths import registered_path
from ps_sglang.gateway.peers.messages import OwnMetrics
from ps_sglang.gateway.routes.forwarding import first_answer
from ps_sglang.gateway.routing.worker_state import AnyWorkerState
from ps_sglang.gateway.state import GATEWAY, Gateway, model_in_path, one_model
from ps_sglang.gateway.telemetry.scrape import labelled, scrape_workers
from ps_sglang.worker_info import HEADER

HEALTH_SECONDS = 3.0
GENERATE_SECONDS = 25.0  # SGLang itself gives up after 20
FLUSH_SECONDS = 30.0


async def list_models(request: web.Request) -> web.Response:
    """GET /v1/models: every decoder, or the one in the path."""
    gateway = request.app[GATEWAY]
    name = model_in_path(request)
    names = gateway.pool.decoders if name is None else (name,)
    return web.json_response(
        {"object": "list", "data": [_card(gateway, decoder) for decoder in names]}
    )


async def get_model(request: web.Request) -> web.Response:
    """GET /v1/models/<name>."""
    gateway = request.app[GATEWAY]
    in_path = model_in_path(request)
    served = gateway.pool.decoders if in_path is None else (in_path,)
    name = request.match_info["name"]
    if name not in served:
        raise ModelNotFound(name, served)
    return web.json_response(_card(gateway, name))


def _card(gateway: Gateway, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": gateway.started,
        "owned_by": "ps_sglang",
        "root": name,
        "parent": gateway.config.base,
        "max_model_len": gateway.config.context_length,
    }


async def health(request: web.Request) -> web.Response:
    """GET /health: 200 if every decoder (or the one in the path) can be answered for."""
    # Not the worker's /health: that one generates a token, and takes a second at least.
    return await _health(request, "/ready", HEALTH_SECONDS)


async def health_generate(request: web.Request) -> web.Response:
    """GET /health_generate: as /health, but each worker runs its model, or is just doing so."""
    return await _health(request, "/health_generate", GENERATE_SECONDS)


async def _health(request: web.Request, path: str, seconds: float) -> web.Response:
    gateway = request.app[GATEWAY]
    decoder = model_in_path(request)
    worker_states = gateway.workers(decoder)
    names = gateway.pool.decoders if decoder is None else (decoder,)
    needed = [gateway.pool.decode(name) for name in names]
    healthy = await asyncio.gather(
        *(_is_well(gateway.http, one, path, seconds) for one in worker_states)
    )
    able = {
        worker_state
        for worker_state, ready in zip(worker_states, healthy, strict=True)
        if ready and worker_state.can_be_asked
    }
    listed = [
        {**_identity(worker_state.worker), "healthy": ready, "state": worker_state.state}
        for worker_state, ready in zip(worker_states, healthy, strict=True)
    ]
    served = bool(needed) and all(not able.isdisjoint(workers) for workers in needed)
    well = served and (gateway.config.is_aggregated or not able.isdisjoint(gateway.pool.prefill))
    return _status(request, well, {"workers": listed})


async def ready(request: web.Request) -> web.Response:
    """GET /ready: 200 if a request can be served now (for the decoder in the path).

    That takes a prefill worker and a decode worker, or an aggregated one, which are neither broken
    nor leaving, as far as is known: nobody is asked. A gateway that is to stop is not ready.
    """
    gateway = request.app[GATEWAY]
    name = model_in_path(request)
    decoders = [
        decoder
        for decoder in (gateway.pool.decoders if name is None else (name,))
        if any(worker_state.is_ready for worker_state in gateway.pool.decode(decoder))
    ]
    prefill = [worker_state.name for worker_state in gateway.pool.prefill if worker_state.is_ready]
    able = bool(decoders and (prefill or gateway.config.is_aggregated))
    able = able and not gateway.draining.is_set()
    return _status(request, able, {"prefill": prefill, "decoders": decoders})


def _status(request: web.Request, able: bool, details: dict[str, Any]) -> web.Response:
    """What a probe gets; how the cluster is made is for admins."""
    body = {"status": "ok" if able else "unavailable"}
    if principal_of(request).is_admin:
        body |= details
    return web.json_response(body, status=200 if able else 503)


async def alive(request: web.Request) -> web.Response:
    """GET /liveness: 200 while this process answers."""
    return web.json_response({"status": "ok"})


async def _is_well(
    http: aiohttp.ClientSession, worker_state: AnyWorkerState, path: str, seconds: float
) -> bool:
    deadline = aiohttp.ClientTimeout(total=seconds)
    try:
        url, headers = worker_state.worker.url + path, worker_state.headers
        async with http.get(url, headers=headers, timeout=deadline) as response:
            return response.status == 200
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False


def _identity(worker: Worker) -> dict[str, Any]:
    return {
        "name": worker.name,
        "role": worker.role,
        "decoder": worker.decoder,
        "url": worker.url,
    }


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics: the gateway's own and all workers'."""
    gateway = request.app[GATEWAY]
    worker_states = gateway.workers(model_in_path(request))
    workers = await scrape_workers(gateway.http, worker_states)
    own = gateway.metrics.render()
    if not gateway.peers.is_alone:
        others = await gateway.peers.ask(OwnMetrics())
        texts = {gateway.peers.own: own, **{one.process: one.content for one in others}}
        own = await asyncio.to_thread(labelled, texts)
    return web.Response(body=own + workers, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def from_decoder(request: web.Request) -> web.Response:
    """GET a path of SGLang's from a worker of the decoder, the first that answers."""
    gateway = request.app[GATEWAY]
    path = registered_path(request)
    assert path is not None, "this handler is registered by path"
    decoder = gateway.pool.served(one_model(request))
    workers = decoder.workers or gateway.pool.decode_candidates(decoder)
    return await first_answer(gateway, workers, "GET", path)


async def flush_cache(request: web.Request) -> web.Response:
    """Empty the caches of all workers, or of the decode workers of the decoder in the path.

    Prefill workers are left alone in the second case: their cache is every decoder's.
    """
    gateway = request.app[GATEWAY]
    name = model_in_path(request)
    worker_states = gateway.workers(None) if name is None else gateway.pool.decode(name)
    problems = await asyncio.gather(
        *(_flush(gateway, worker_state) for worker_state in worker_states)
    )
    failed = [problem for problem in problems if problem]
    if failed:
        return web.Response(text="\n".join(failed) + "\n", status=400)
    return web.Response(text=f"Cache flushed on {len(worker_states)} worker(s).\n")


async def _flush(gateway: Gateway, worker_state: AnyWorkerState) -> str | None:
    worker, incarnation = worker_state.worker, worker_state.incarnation
    deadline = aiohttp.ClientTimeout(total=FLUSH_SECONDS)
    try:
        with reaching(worker):
            async with gateway.http.post(
                worker.url + "/flush_cache", headers=worker_state.headers, timeout=deadline
            ) as response:
                require_process(worker, incarnation, response.headers.get(HEADER))
                text = (await response.text()).strip()
                if response.status != 200:
                    return f"{worker.title}: {text}"
    except WorkerUnreachable as error:
        return error.message
    gateway.cache_index.forget(worker.name)
    return None
