"""/workers: who serves now; workers join, drain, get other weights and leave at run time.

None of these calls starts or ends a process, and each goes on to its end if its caller hangs up.
"""

from __future__ import annotations

import logging
from typing import Any

import aiohttp
from aiohttp import web

from ps_sglang.gateway.bodies.reading import decode_body
from ps_sglang.gateway.config import DecodeWorker, PrefillWorker
from ps_sglang.gateway.errors import (
    BadRequest,
    GatewayError,
    engine_error,
    reaching,
    require_process,
)
from ps_sglang.gateway.peers.messages import Nothing
from ps_sglang.gateway.routes.leases import described
from ps_sglang.gateway.routes.operations import (
    OPERATION_LOCKS,
    OperationLocks,
    conflict,
    require_allowed,
    run_to_end,
)
from ps_sglang.gateway.routing.worker_state import AnyWorkerState, BreakerState
from ps_sglang.gateway.state import GATEWAY, Gateway
from ps_sglang.gateway.workers import admission
from ps_sglang.worker_info import HEADER

log = logging.getLogger("ps_sglang.gateway")

_LEAVING = "is leaving"
LOAD_SECONDS = 3600.0  # reading weights takes as long as it takes; this only ends a hang


def add_routes(app: web.Application) -> None:
    """Register all routes of this module."""
    app[OPERATION_LOCKS] = OperationLocks()
    router = app.router
    router.add_get("/workers", list_workers)
    router.add_post("/workers", add_worker)
    router.add_get("/workers/{name}", get_worker)
    for action, handler in (("drain", drain), ("resume", resume), ("swap", swap)):
        router.add_post(f"/workers/{{name}}/{action}", handler)
    router.add_delete("/workers/{name}", remove)


async def list_workers(request: web.Request) -> web.Response:
    """GET /workers: every worker with its state and load."""
    gateway = request.app[GATEWAY]
    key = gateway.cluster_key
    return web.json_response(
        {
            "workers": [_entry(gateway, worker_state) for worker_state in gateway.pool],
            # By which a launcher knows whether it has the same, and where it is on this machine.
            "cluster_key": key and {"id": key.id, "file": gateway.config.cluster_key_file},
        }
    )


async def get_worker(request: web.Request) -> web.Response:
    """GET /workers/<name>: one of them."""
    return web.json_response(_entry(request.app[GATEWAY], _worker_state(request)))


async def add_worker(request: web.Request) -> web.Response:
    """POST /workers: a running worker joins, if it fits; see `admission.Joining` for the body.

    It takes the place of one that had its address before and is refused, or gone.
    """
    gateway = request.app[GATEWAY]
    joining = admission.check_request(await request.read())
    url = joining.url.rstrip("/")
    facts = await admission.ask(gateway.http, url, gateway.cluster_key)
    problems = admission.incompatibilities(
        facts,
        admission.reference(gateway.pool),
        gateway.config.context_length,
        is_aggregated=gateway.config.is_aggregated,
        allow_unverified=joining.allow_unverified,
        fingerprint=gateway.config.fingerprint,
    )
    if facts is not None:
        problems += admission.tp_conflicts(facts, gateway.pool)
    if problems or facts is None:
        raise _misfit(url, problems)
    worker = admission.worker(joining, facts)
    for other in gateway.pool:
        if other.incarnation == facts.incarnation and other.refused is None:
            raise conflict(
                f"The worker at {worker.url} is in the cluster already: {other.name!r} at "
                f"{other.worker.url}."
            )
    if isinstance(worker, DecodeWorker):
        for adapter in worker.adapters or ():
            request.app[OPERATION_LOCKS].refuse_if_busy(adapter.decoder)
        if conflicts := list(admission.adapter_conflicts(worker, facts, gateway.pool)):
            raise _misfit(url, conflicts)
    replaced = _at(gateway, worker.url)
    if gateway.pool.get(worker.name) not in (None, replaced):
        raise conflict(f"{worker.name!r} is taken; send another `name`.")
    if replaced is not None:  # another process was there, and is there no more
        request.app[OPERATION_LOCKS].refuse_if_busy(replaced)
        gateway.health.take_requests_from(replaced, "another worker took its address")
        gateway.pool.remove(replaced.name)
        log.info("%s gives its address to another", replaced.worker.title)
    worker_state = gateway.pool.add(worker, facts)
    log.info("%s at %s joined", worker.title, worker.url)
    answer = _entry(gateway, worker_state)
    if joining.lease:
        answer["lease"] = described(gateway.leases.grant(worker_state).id)
    return web.json_response(answer, status=201)


def _misfit(url: str, problems: list[str]) -> GatewayError:
    return GatewayError(
        f"The worker at {url} does not fit this cluster: {'; '.join(problems)}.",
        status=409,
        code="worker_misfit",
    )


async def drain(request: web.Request) -> web.Response:
    """POST /workers/<name>/drain: it finishes what it has and gets nothing new."""
    return _set_draining(request, True, "gets nothing new")


async def resume(request: web.Request) -> web.Response:
    """POST /workers/<name>/resume: it gets requests again."""
    return _set_draining(request, False, "gets requests again")


def _set_draining(request: web.Request, draining: bool, effect: str) -> web.Response:
    gateway, worker_state = request.app[GATEWAY], _worker_state(request)
    request.app[OPERATION_LOCKS].refuse_if_busy(worker_state)
    worker_state.draining = draining
    log.info("%s %s", worker_state.worker.title, effect)
    return web.json_response(_entry(gateway, worker_state))


async def remove(request: web.Request) -> web.Response:
    """DELETE /workers/<name>: it leaves when it has finished what it has; with `?now=1` at once.

    What has sent nothing yet then goes to another worker; a stream that has begun ends in an error.
    With the worker's lease, as `?lease=ID`, it is the worker that asks, and it cannot be kept.
    """
    gateway, worker_state = request.app[GATEWAY], _worker_state(request)
    ends_itself = gateway.leases.holds(worker_state, request.query.get("lease", ""))
    now = _flag(request, "now")
    others = [
        other for other in gateway.pool.prefill if other is not worker_state and other.can_be_asked
    ]
    if (
        isinstance(worker_state.worker, PrefillWorker)
        and not others
        and worker_state.refused is None
        and not ends_itself
    ):
        raise conflict(
            f"{worker_state.name!r} is the last prefill worker that takes requests, and nothing "
            "can be answered without one: add another first."
        )
    if not now or request.app[OPERATION_LOCKS].operation(worker_state) != _LEAVING:
        request.app[OPERATION_LOCKS].refuse_if_busy(worker_state)
    worker_state.draining = True
    if now:
        # A removal that is waiting for these requests then ends, too.
        gateway.health.take_requests_from(worker_state, "it was removed")
        await _wait_idle(gateway, worker_state)
    left = web.json_response({"name": worker_state.name, "removed": True})
    if gateway.pool.get(worker_state.name) is not worker_state:
        return left

    async def leave() -> web.Response:
        await _wait_idle(gateway, worker_state)
        if gateway.pool.get(worker_state.name) is worker_state:  # its lease may have expired
            gateway.pool.remove(worker_state.name)
        log.info("%s left", worker_state.worker.title)
        return left

    return await run_to_end(request, worker_state, _LEAVING, leave)


async def swap(request: web.Request) -> web.Response:
    """POST /workers/<name>/swap `{"model_path": ...}`: other weights for a decode worker.

    The worker itself compares the new checkpoint with its base and refuses a misfit before it loads
    anything. Its cache stays valid, as it holds the base's KV only. While other workers of the
    decoder take requests, this one is drained first; a decoder's only worker keeps new requests
    waiting instead, for as long as it loads.
    """
    gateway, worker_state = request.app[GATEWAY], _worker_state(request)
    body = decode_body(await request.read())
    path = body.get("model_path")
    if set(body) != {"model_path"} or not isinstance(path, str) or not path:
        raise BadRequest(
            'The body must be {"model_path": "..."}: the folder of the new checkpoint, as the '
            "worker sees it.",
            param="model_path",
        )
    if isinstance(worker_state.worker, PrefillWorker):
        raise BadRequest(
            f"{worker_state.name!r} is a prefill worker: its weights are the base's, and every "
            "page in the cluster was computed with them."
        )
    if worker_state.worker.adapters is not None:
        raise BadRequest(
            f"{worker_state.name!r} has the base's weights, and adapters on them: `ps-sglang "
            "decoders replace` gives a decoder another adapter."
        )
    decoder = worker_state.worker.decoder
    await require_allowed(request, path, "model_path")

    async def change() -> web.Response:
        was_draining = worker_state.draining
        worker_state.draining = was_draining or any(
            other.takes_requests
            for other in gateway.pool.decode(decoder)
            if other is not worker_state
        )
        try:
            if worker_state.draining:
                await _wait_idle(gateway, worker_state)
            with gateway.health.engine_busy(worker_state):
                await _load(gateway, worker_state, path)
                await gateway.health.recognition.admit_swapped(worker_state)
            log.info("%s serves %s", worker_state.worker.title, path)
        finally:
            worker_state.draining = was_draining
        return web.json_response({**_entry(gateway, worker_state), "model_path": path})

    return await run_to_end(request, worker_state, "is being swapped", change)


async def _wait_idle(gateway: Gateway, worker_state: AnyWorkerState) -> None:
    """Wait until a worker that gets nothing new has no request, of whatever gateway process."""
    await gateway.peers.ask(Nothing())
    await worker_state.wait_idle()


async def _load(gateway: Gateway, worker_state: AnyWorkerState, path: str) -> None:
    deadline = aiohttp.ClientTimeout(total=LOAD_SECONDS)
    incarnation = worker_state.incarnation
    with reaching(worker_state.worker):
        async with gateway.http.post(
            worker_state.worker.url + "/update_weights_from_disk",
            json={"model_path": path, "flush_cache": False},
            headers=worker_state.headers,
            timeout=deadline,
        ) as response:
            require_process(worker_state.worker, incarnation, response.headers.get(HEADER))
            content = await response.read()
    if response.status != 200:
        problem = engine_error(response.status, content)
        raise GatewayError(
            f"{worker_state.worker.title} keeps its weights: {problem.message}",
            status=409 if response.status == 400 else 502,
            code="swap_refused",
        )


def _entry(gateway: Gateway, worker_state: AnyWorkerState) -> dict[str, Any]:
    worker, load = worker_state.worker, worker_state.load
    served = gateway.pool.decoders.values()
    problems = [] if worker_state.problem is None else [worker_state.problem]
    problems += [
        f"decoder {one.name!r}: {text}"
        for one in served
        for state, text in one.problems.items()
        if state is worker_state
    ]
    cache = gateway.cache_index.source(worker.name)
    return {
        "name": worker.name,
        "role": worker.role,
        "decoder": worker.decoder,
        "decoders": [one.name for one in served if worker_state in one.workers],
        "url": worker.url,
        "state": worker_state.state,
        "problem": "; ".join(problems) or None,
        "times_broken": gateway.health.transitions[worker.name, BreakerState.OPEN],
        "lease_seconds": gateway.leases.seconds_left(worker_state),
        "load": {
            "requests": load.requests,
            "queued_tokens": round(load.queued_tokens),
            "moving_tokens": round(load.moving_tokens),
        },
        "cache": {"known_by": cache.kind, "problem": cache.problem, "tokens": cache.tokens},
    }


def _worker_state(request: web.Request) -> AnyWorkerState:
    name, pool = request.match_info["name"], request.app[GATEWAY].pool
    worker_state = pool.get(name)
    if worker_state is None:
        raise GatewayError(
            f"There is no worker {name!r}; there are {', '.join(one.name for one in pool)}.",
            status=404,
            code="worker_not_found",
        )
    return worker_state


def _at(gateway: Gateway, url: str) -> AnyWorkerState | None:
    return next(
        (worker_state for worker_state in gateway.pool if worker_state.worker.url == url), None
    )


def _flag(request: web.Request, name: str) -> bool:
    value = request.query.get(name, "0")
    if value not in ("0", "1"):
        raise BadRequest(f"`{name}` must be 0 or 1, not {value!r}.", param=name)
    return value == "1"
