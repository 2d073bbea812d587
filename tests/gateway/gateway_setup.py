"""A gateway in front of stand-in engines, for the tests of this folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
from aiohttp import web

from ps_sglang.gateway.app import build_app
from ps_sglang.gateway.config import GatewayConfig
from ps_sglang.gateway.limits import DEFAULT_LIMITS, GatewayLimits
from ps_sglang.gateway.server import runner
from ps_sglang.gateway.state import GATEWAY
from ps_sglang.gateway.workers.probe import DEFAULT_TIMING, ProbeTiming
from tests.support.standin_engine import Cluster, Worker

QUICK = ProbeTiming(every=0.02, deadline=0.5, silence=0.5, engine_every=1000.0, engine_deadline=0.5)
NEVER = ProbeTiming(every=1000.0)  # nobody is asked: what a request meets, it meets alone


@dataclass
class Setup:
    """A running gateway in front of stand-in engines."""

    cluster: Cluster
    app: web.Application
    url: str
    http: aiohttp.ClientSession
    runner: web.AppRunner

    @property
    def prefill(self) -> Worker:
        return self.cluster.prefill[0]

    def decode(self, name: str = "a") -> Worker:
        return self.cluster.decode[name][0]

    def pending(self) -> int:
        """Unfinished requests as the gateway's router counts them."""
        return sum(worker_state.load.requests for worker_state in self.app[GATEWAY].pool)

    async def post(self, path: str, body: Any, **options: Any) -> tuple[int, Any]:
        async with self.http.post(self.url + path, json=body, **options) as response:
            return response.status, await response.json()


@asynccontextmanager
async def running(
    timing: ProbeTiming = DEFAULT_TIMING,
    cors_origins: tuple[str, ...] = (),
    api_keys: str | None = None,
    **shape: Any,
) -> AsyncIterator[Setup]:
    """A gateway in front of a cluster of the given shape, see `Cluster.running`."""
    async with (
        Cluster.running(**shape) as cluster,
        serving(cluster, timing, cors_origins, api_keys) as setup,
    ):
        yield setup


@asynccontextmanager
async def serving(
    cluster: Cluster,
    timing: ProbeTiming = DEFAULT_TIMING,
    cors_origins: tuple[str, ...] = (),
    api_keys: str | None = None,
    limits: GatewayLimits = DEFAULT_LIMITS,
    config: GatewayConfig | None = None,
) -> AsyncIterator[Setup]:
    """A gateway in front of a cluster, which it knows from the beginning without a `config`."""
    known = replace(cluster.config(), cors_origins=cors_origins, api_keys=api_keys, limits=limits)
    app = build_app(config or known, timing)
    server = runner(app)
    await server.setup()
    try:
        await web.TCPSite(server, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{server.addresses[0][1]}"
        async with aiohttp.ClientSession() as http:
            yield Setup(cluster, app, url, http, server)
    finally:
        await server.cleanup()


async def stream_by_tokens(gateway: Setup, tokens: int = 3) -> None:
    """Stream an answer of decoder `a`, whose tokens come one by one."""
    step = gateway.decode().plan.step = asyncio.Semaphore(1)
    body = {"model": "a", "prompt": "x", "stream": True, "max_tokens": tokens}
    async with gateway.http.post(gateway.url + "/v1/completions", json=body) as response:
        assert response.status == 200
        async for _ in response.content.iter_any():
            step.release()
