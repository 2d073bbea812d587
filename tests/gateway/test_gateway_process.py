"""The gateway as a process, its configuration file, and what it imports."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from ps_sglang.gateway.config import ConfigError, DecodeWorker, GatewayConfig, PrefillWorker
from tests.support.standin_engine import Cluster

PREFILL = PrefillWorker("p", "http://127.0.0.1:1", "127.0.0.1", 2)
DECODE = DecodeWorker("d", "http://127.0.0.1:3", "a")


def config(**fields: object) -> GatewayConfig:
    given = {"host": "127.0.0.1", "port": 0, "base": "base", "context_length": 100}
    given["vocabulary"] = 500
    given |= {"prefill": (PREFILL,), "decode": (DECODE,)} | fields
    return GatewayConfig(**given)  # type: ignore[arg-type]


def test_the_configuration_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "gateway.json"
    path.write_bytes(config().to_json())
    assert GatewayConfig.load(path) == config()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", config().to_json().replace(b"0", b'"x"')])
def test_a_broken_configuration_file(content: bytes) -> None:
    with pytest.raises(ConfigError, match="gateway configuration"):
        GatewayConfig.from_json(content)


def test_all_problems_of_a_configuration_are_listed() -> None:
    with pytest.raises(ConfigError) as caught:
        config(context_length=0, decode=(DECODE, DecodeWorker("d", "http://x", "a/b")))
    for problem in ("`context_length` must be at least 1", "two workers are called 'd'", "'a/b'"):
        assert problem in str(caught.value)


async def start(path: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "ps_sglang.gateway", "--config", str(path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_serves_until_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "gateway.json"
    async with Cluster.running() as cluster:
        path.write_bytes(cluster.config().to_json())
        process = await start(path)
        assert process.stdout is not None
        try:
            ready, url = (await process.stdout.readline()).decode().split()
            assert ready == "ready"
            worker = cluster.decode["a"][0]
            worker.plan.step = asyncio.Semaphore(1)
            body = {"model": "a", "prompt": "x", "stream": True}
            async with (
                aiohttp.ClientSession() as http,
                http.post(f"{url}/v1/completions", json=body) as response,
            ):
                await response.content.readuntil(b"\n\n")
                process.send_signal(number)  # in the middle of a stream
                _, errors = await process.communicate()
            assert process.returncode == 0, errors
            await worker.saw_hang_up_of_connection()
            assert b"Traceback" not in errors
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_two_processes_serve_one_port(tmp_path: Path) -> None:
    """The system gives each connection to one of them; one that was killed comes back."""
    async with Cluster.running() as cluster, aiohttp.ClientSession() as http:
        several = replace(cluster.config(), processes=2, peers=str(tmp_path))
        paths = [tmp_path / "owner.json", tmp_path / "other.json"]
        for number, path in enumerate(paths):
            path.write_bytes(replace(several, process=number).to_json())
        running = [await start(path) for path in paths]
        try:
            urls = {await ready_url(process) for process in running}
            assert len(urls) == 1
            url = urls.pop()
            await until_all_answer(http, url, {"0", "1"})
            running[1].kill()
            await running[1].wait()
            running[1] = await start(paths[1])
            assert await ready_url(running[1]) == url
            await until_all_answer(http, url, {"0", "1"})
        finally:
            for process in reversed(running):
                process.terminate()
                await process.communicate()


async def ready_url(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    word, url = (await process.stdout.readline()).decode().split()
    assert word == "ready"
    return url


async def until_all_answer(http: aiohttp.ClientSession, url: str, processes: set[str]) -> None:
    """Ask on new connections until each process has answered."""
    answered: set[str] = set()
    while answered != processes:
        closed = {"Connection": "close"}
        sent = {"text": "x", "model": "a"}
        async with http.post(f"{url}/generate", json=sent, headers=closed) as response:
            assert response.status == 200
        async with http.get(f"{url}/metrics", headers=closed) as response:
            metrics = await response.text()
        answered = set(
            re.findall(r'gateway_requests_total\{.*process="(\d)".*route="/generate"', metrics)
        )


async def test_it_says_why_it_cannot_serve(tmp_path: Path) -> None:
    path = tmp_path / "gateway.json"
    process = await start(path)
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert errors.decode().startswith("gateway: ")
    assert "gateway.json" in errors.decode()
    assert "Traceback" not in errors.decode()


def test_it_imports_no_engine() -> None:
    code = """
import sys, ps_sglang.gateway.__main__
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "sglang", "transformers"} & set(found.stdout.split())
