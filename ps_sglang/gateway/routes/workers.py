"""/workers: who serves now; workers join, drain, get other weights and leave at run time.

None of these calls starts or ends a process, and each goes on to its end if its caller hangs up.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from aiohttp import web

from ps_sglang.gateway.bodies.reading import decode_body
from ps_sglang.gateway.config import PrefillWorker
from ps_sglang.gateway.errors import (
    BadRequest,
    GatewayError,
    engine_error,
    reaching,
    require_process,
)
from ps_sglang.gateway.routing.pool import AnyMember
from ps_sglang.gateway.state import GATEWAY, Gateway
from ps_sglang.gateway.workers import admission
from ps_sglang.identity import HEADER

log = logging.getLogger("ps_sglang.gateway")

_LEAVING = "is leaving"
LOAD_SECONDS = 3600.0  # reading weights takes as long as it takes; this only ends a hang


class Changing:
    """The members that a call is just changing: a second call on one is refused, not queued."""

    def __init__(self) -> None:
        self._what: dict[AnyMember, str] = {}

    def what(self, member: AnyMember) -> str | None:
        """What a call is doing with `member` now, if one is."""
        return self._what.get(member)

    def refuse_if_busy(self, member: AnyMember) -> None:
        """Raise GatewayError if a call is changing `member` now."""
        if (what := self._what.get(member)) is not None:
            raise _conflict(f"{member.name!r} {what}; try again when that has ended.")

    def begin(self, member: AnyMember, what: str) -> None:
        """`what` says what a call is doing with `member`; raises GatewayError if one is."""
        self.refuse_if_busy(member)
        self._what[member] = what

    def end(self, member: AnyMember) -> None:
        """The call that began has ended."""
        del self._what[member]


CHANGING = web.AppKey("changing", Changing)


def add_routes(app: web.Application) -> None:
    """Register all routes of this module."""
    app[CHANGING] = Changing()
    router = app.router
    router.add_get("/workers", list_workers)
    router.add_post("/workers", add_worker)
    for action, handler in (("drain", drain), ("resume", resume), ("swap", swap)):
        router.add_post(f"/workers/{{name}}/{action}", handler)
    router.add_delete("/workers/{name}", remove)


async def list_workers(request: web.Request) -> web.Response:
    """GET /workers: every worker with its state and load."""
    gateway = request.app[GATEWAY]
    return web.json_response({"workers": [_entry(gateway, member) for member in gateway.pool]})


async def add_worker(request: web.Request) -> web.Response:
    """POST /workers: a running worker joins, if it fits; see `admission.Joining` for the body.

    It takes the place of one that had its address before and is refused, or gone.
    """
    gateway = request.app[GATEWAY]
    joining = admission.check_request(await request.read())
    url = joining.url.rstrip("/")
    facts = await admission.ask(gateway.session, url)
    found = admission.misfits(
        facts,
        admission.reference(gateway.pool),
        gateway.config.context_length,
        allow_unverified=joining.allow_unverified,
    )
    if found or facts is None:
        raise GatewayError(
            f"The worker at {joining.url} does not fit this cluster: " + "; ".join(found) + ".",
            status=409,
            code="worker_misfit",
        )
    worker = admission.worker(joining, facts)
    for known in gateway.pool:
        if known.incarnation == facts.incarnation and known.refused is None:
            raise _conflict(
                f"The worker at {worker.url} is in the cluster already: {known.name!r} at "
                f"{known.worker.url}."
            )
    replaced = _at(gateway, worker.url)
    if gateway.pool.get(worker.name) not in (None, replaced):
        raise _conflict(f"{worker.name!r} is taken; send another `name`.")
    if replaced is not None:  # another process was there, and is there no more
        request.app[CHANGING].refuse_if_busy(replaced)
        gateway.health.take_requests_from(replaced, "another worker took its address")
        gateway.pool.remove(replaced.name)
        log.info("%s gives its address to another", replaced.worker.title)
    member = gateway.pool.add(worker, facts)
    log.info("%s at %s joined", worker.title, worker.url)
    return web.json_response(_entry(gateway, member), status=201)


async def drain(request: web.Request) -> web.Response:
    """POST /workers/<name>/drain: it finishes what it has and gets nothing new."""
    gateway, member = request.app[GATEWAY], _member(request)
    request.app[CHANGING].refuse_if_busy(member)
    member.draining = True
    log.info("%s gets nothing new", member.worker.title)
    return web.json_response(_entry(gateway, member))


async def resume(request: web.Request) -> web.Response:
    """POST /workers/<name>/resume: it gets requests again."""
    gateway, member = request.app[GATEWAY], _member(request)
    request.app[CHANGING].refuse_if_busy(member)
    member.draining = False
    log.info("%s gets requests again", member.worker.title)
    return web.json_response(_entry(gateway, member))


async def remove(request: web.Request) -> web.Response:
    """DELETE /workers/<name>: it leaves when it has finished what it has; with `?now=1` at once.

    What has sent nothing yet then goes to another worker; a stream that has begun ends in an error.
    """
    gateway, member = request.app[GATEWAY], _member(request)
    now = _flag(request, "now")
    others = [one for one in gateway.pool.prefill if one is not member and one.can_be_asked]
    if isinstance(member.worker, PrefillWorker) and not others and member.refused is None:
        raise _conflict(
            f"{member.name!r} is the last prefill worker that takes requests, and nothing can be "
            "answered without one: add another first."
        )
    if not now or request.app[CHANGING].what(member) != _LEAVING:
        request.app[CHANGING].refuse_if_busy(member)
    member.draining = True
    if now:
        # A removal that is waiting for these requests then ends, too.
        gateway.health.take_requests_from(member, "it was removed")
        await member.wait_idle()
    left = web.json_response({"name": member.name, "removed": True})
    if gateway.pool.get(member.name) is not member:
        return left

    async def leave() -> web.Response:
        await member.wait_idle()
        gateway.pool.remove(member.name)
        log.info("%s left", member.worker.title)
        return left

    return await _to_its_end(request, member, _LEAVING, leave)


async def swap(request: web.Request) -> web.Response:
    """POST /workers/<name>/swap `{"model_path": ...}`: other weights for a decode worker.

    The worker itself compares the new checkpoint with its base and refuses a misfit before it loads
    anything. Its cache stays valid, as it holds the base's KV only. While other workers of the
    decoder take requests, this one is drained first; a decoder's only worker keeps new requests
    waiting instead, for as long as it loads.
    """
    gateway, member = request.app[GATEWAY], _member(request)
    body = decode_body(await request.read())
    path = body.get("model_path")
    if set(body) != {"model_path"} or not isinstance(path, str) or not path:
        raise BadRequest(
            'The body must be {"model_path": "..."}: the folder of the new checkpoint, as the '
            "worker sees it.",
            param="model_path",
        )
    if isinstance(member.worker, PrefillWorker):
        raise BadRequest(
            f"{member.name!r} is a prefill worker: its weights are the base's, and every page in "
            "the cluster was computed with them."
        )
    decoder = member.worker.decoder

    async def change() -> web.Response:
        was_draining = member.draining
        member.draining = was_draining or any(
            other.takes_requests for other in gateway.pool.decode(decoder) if other is not member
        )
        try:
            if member.draining:
                await member.wait_idle()
            with gateway.health.engine_busy(member):
                await _load(gateway, member, path)
                await gateway.health.recognition.admit_swapped(member)
            log.info("%s serves %s", member.worker.title, path)
        finally:
            member.draining = was_draining
        return web.json_response({**_entry(gateway, member), "model_path": path})

    return await _to_its_end(request, member, "is being swapped", change)


async def _to_its_end(
    request: web.Request, member: AnyMember, what: str, work: Callable[[], Awaitable[web.Response]]
) -> web.Response:
    """Run `work` on `member`, whether the caller waits for it or hangs up."""
    changing = request.app[CHANGING]
    changing.begin(member, what)
    done: asyncio.Future[web.Response] = asyncio.get_running_loop().create_future()

    async def run() -> None:
        try:
            response = await work()
        except Exception as error:
            log.warning("%s %s: %s", member.worker.title, what, error)
            if not done.done():
                done.set_exception(error)
        else:
            if not done.done():
                done.set_result(response)
        finally:
            changing.end(member)

    request.app[GATEWAY].background.start(run())
    return await done


async def _load(gateway: Gateway, member: AnyMember, path: str) -> None:
    deadline = aiohttp.ClientTimeout(total=LOAD_SECONDS)
    wanted = member.incarnation
    with reaching(member.worker):
        async with gateway.session.post(
            member.worker.url + "/update_weights_from_disk",
            json={"model_path": path, "flush_cache": False},
            headers=member.headers,
            timeout=deadline,
        ) as response:
            require_process(member.worker, wanted, response.headers.get(HEADER))
            content = await response.read()
    if response.status != 200:
        problem = engine_error(response.status, content)
        raise GatewayError(
            f"{member.worker.title} keeps its weights: {problem.message}",
            status=409 if response.status == 400 else 502,
            code="swap_refused",
        )


def _entry(gateway: Gateway, member: AnyMember) -> dict[str, Any]:
    worker, load = member.worker, member.load
    cache = gateway.holdings.source(worker.name)
    return {
        "name": worker.name,
        "role": worker.role,
        "decoder": worker.decoder,
        "url": worker.url,
        "state": member.state,
        "problem": member.problem,
        "times_broken": gateway.health.broken[worker.name],
        "load": {
            "requests": load.requests,
            "queued_tokens": round(load.queued_tokens),
            "moving_tokens": round(load.moving_tokens),
        },
        "cache": {"known_by": cache.kind, "problem": cache.problem, "tokens": cache.tokens},
    }


def _member(request: web.Request) -> AnyMember:
    name, pool = request.match_info["name"], request.app[GATEWAY].pool
    member = pool.get(name)
    if member is None:
        raise GatewayError(
            f"There is no worker {name!r}; there are {', '.join(one.name for one in pool)}.",
            status=404,
            code="worker_not_found",
        )
    return member


def _at(gateway: Gateway, url: str) -> AnyMember | None:
    return next((member for member in gateway.pool if member.worker.url == url), None)


def _flag(request: web.Request, name: str) -> bool:
    value = request.query.get(name, "0")
    if value not in ("0", "1"):
        raise BadRequest(f"`{name}` must be 0 or 1, not {value!r}.", param=name)
    return value == "1"


def _conflict(message: str) -> GatewayError:
    return GatewayError(message, status=409, code="worker_conflict")
