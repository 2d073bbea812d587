"""Questions that any worker of a decoder can answer: they go to the first that does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from ps_sglang.gateway.errors import NoWorker, WorkerUnreachable, reaching, require_process
from ps_sglang.gateway.routing.worker_state import AnyWorkerState
from ps_sglang.gateway.state import Gateway
from ps_sglang.worker_info import HEADER

INFO_SECONDS = 10.0


async def first_answer(
    gateway: Gateway,
    worker_states: Sequence[AnyWorkerState],
    method: str,
    path: str,
    body: Any = None,
) -> web.Response:
    """The answer of the first worker that gives one, as it gave it.

    `path` may have a query, `body` goes as JSON. Raises WorkerUnreachable, NoWorker.
    """
    failures: list[WorkerUnreachable] = []
    for worker_state in worker_states:
        try:
            return await ask(gateway, worker_state, method, path, body)
        except WorkerUnreachable as error:
            failures.append(error)
    if not failures:
        raise NoWorker("No worker is left that could be asked.")
    raise failures[-1]


async def ask(
    gateway: Gateway,
    worker_state: AnyWorkerState,
    method: str,
    path: str,
    body: Any = None,
) -> web.Response:
    """One worker's answer, as it gave it; raises WorkerUnreachable."""
    worker, incarnation = worker_state.worker, worker_state.incarnation
    if body is not None:
        return await _send(gateway, worker_state, path, body)
    deadline = aiohttp.ClientTimeout(total=INFO_SECONDS)
    with reaching(worker):
        async with gateway.http.request(
            method,
            worker.url + path,
            headers=worker_state.headers,
            timeout=deadline,
        ) as response:
            require_process(worker, incarnation, response.headers.get(HEADER))
            content, kind = await response.read(), response.content_type
            return web.Response(body=content, status=response.status, content_type=kind)


async def _send(
    gateway: Gateway, worker_state: AnyWorkerState, path: str, body: Any
) -> web.Response:
    """POST what may hold a prompt, by the client that makes sure of whom it speaks to."""
    worker, incarnation = worker_state.worker, worker_state.incarnation
    with reaching(worker):
        async with asyncio.timeout(INFO_SECONDS):
            with await gateway.client.post(
                worker.url, path, msgspec.json.encode(body), worker_state.headers
            ) as response:
                require_process(worker, incarnation, response.incarnation)
                content = await response.read()
    return web.Response(body=content, status=response.status, content_type="application/json")
