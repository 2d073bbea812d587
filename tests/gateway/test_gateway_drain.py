"""A gateway that is told to stop lets its requests end, and says that it is not ready."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from tests.support.standin_engine import Cluster


@pytest.mark.parametrize("seconds", [60.0, 0.1])
async def test_requests_end_before_it_does_or_have_had_their_time(
    tmp_path: Path, seconds: float
) -> None:
    path = tmp_path / "gateway.json"
    async with Cluster.running() as cluster:
        path.write_bytes(replace(cluster.config(), drain_s=seconds).to_json())
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ps_sglang.gateway", "--config", str(path)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            _, url = (await process.stdout.readline()).decode().split()
            worker = cluster.decode["a"][0]
            worker.plan.step = asyncio.Semaphore(1)
            body = {"model": "a", "prompt": "x", "stream": True}
            async with (
                aiohttp.ClientSession() as http,
                http.post(f"{url}/v1/completions", json=body) as response,
            ):
                assert await _ready(http, url) == 200
                await response.content.readuntil(b"\n\n")
                process.send_signal(signal.SIGTERM)
                if seconds < 1:
                    await worker.saw_hang_up_of_connection()
                else:
                    while await _ready(http, url) == 200:
                        pass
                    other = {"model": "b", "prompt": "x"}
                    async with http.post(f"{url}/v1/completions", json=other) as late:
                        assert late.status == 200
                    async with http.get(f"{url}/liveness") as alive:
                        assert alive.status == 200
                    for _ in range(100):
                        worker.plan.step.release()
                    assert (await response.content.read()).endswith(b"data: [DONE]\n\n")
                _, errors = await process.communicate()
            assert process.returncode == 0, errors
            assert b"Traceback" not in errors
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _ready(http: aiohttp.ClientSession, url: str) -> int:
    async with http.get(f"{url}/readiness") as response:
        return response.status
