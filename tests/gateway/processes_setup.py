"""Several gateways that act as one before stand-in engines, all in the test's own process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
from aiohttp import web

from ps_sglang.gateway.app import build_app
from ps_sglang.gateway.config import GatewayConfig
from ps_sglang.gateway.peers.messages import Nothing
from ps_sglang.gateway.server import runner, serve_peers
from ps_sglang.gateway.state import GATEWAY, Gateway
from ps_sglang.gateway.workers.probe import DEFAULT_TIMING, ProbeTiming
from tests.gateway.gateway_setup import Setup
from tests.support.standin_engine import Cluster


class Several:
    """The processes of one gateway, each at a port of its own, as tests must choose one."""

    def __init__(self, cluster: Cluster, config: GatewayConfig, timing: ProbeTiming) -> None:
        self.cluster = cluster
        self.setups: dict[int, Setup] = {}
        self._config = config
        self._timing = timing

    def __getitem__(self, process: int) -> Setup:
        return self.setups[process]

    def gateway(self, process: int) -> Gateway:
        return self.setups[process].app[GATEWAY]

    async def start(self, process: int, http: aiohttp.ClientSession) -> None:
        """Start a process, or start it again."""
        app = build_app(replace(self._config, process=process), self._timing)
        server = runner(app)
        await server.setup()
        await serve_peers(server, app[GATEWAY])
        site = web.TCPSite(server, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{server.addresses[-1][1]}"
        self.setups[process] = Setup(self.cluster, app, url, http, server)

    async def stop(self, process: int) -> None:
        await self.setups.pop(process).runner.cleanup()

    async def agree(self) -> None:
        """Wait until each process knows what all others have done by now."""
        for process in self.setups:
            heard = 0
            while heard < len(self.setups) - 1:
                heard = len(await self.gateway(process).peers.ask(Nothing()))
                await asyncio.sleep(0)


@asynccontextmanager
async def several(
    count: int = 2, timing: ProbeTiming = DEFAULT_TIMING, changes: Any = None, **shape: Any
) -> AsyncIterator[Several]:
    """`count` processes before a cluster of the given shape; `changes` of their configuration."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        cluster = await stack.enter_async_context(Cluster.running(**shape))
        config = replace(cluster.config(), processes=count, peers=folder, **(changes or {}))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        made = Several(cluster, config, timing)
        try:
            for process in range(count):
                await made.start(process, http)
            await made.agree()
            yield made
        finally:
            for process in sorted(made.setups, reverse=True):
                await made.stop(process)
