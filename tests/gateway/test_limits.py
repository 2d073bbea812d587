"""The gateway at its limit of open files, and clients that keep it waiting."""

from __future__ import annotations

import asyncio
import errno
import json
import re
import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from ps_sglang.gateway import listener
from ps_sglang.gateway.config import PrefillWorker
from ps_sglang.gateway.dispatch.descriptors import PER_SAMPLE, Descriptors
from ps_sglang.gateway.dispatch.worker_client import WorkerClient
from ps_sglang.gateway.errors import (
    BadRequest,
    GatewayBusy,
    WorkerUnreachable,
    is_own,
    reaching,
)
from ps_sglang.gateway.state import GATEWAY
from ps_sglang.open_files import raise_limit
from tests.gateway.gateway_setup import Setup, running
from tests.gateway.test_health import SERVERS
from tests.support.standin_engine import Cluster

FILES = 200
CLIENTS = 400
BODY = {"model": "a", "prompt": "one", "stream": True}
CHAT = {"model": "a", "messages": [{"role": "user", "content": "one"}], "stream": True}

_LOWERED = """
import resource, runpy, sys
soft, hard = (int(one) for one in sys.argv[1:3])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
sys.argv[1:3] = []
runpy.run_module("ps_sglang.gateway", run_name="__main__", alter_sys=True)
"""


@asynccontextmanager
async def process(
    cluster: Cluster, folder: Path, soft: int, hard: int
) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """A gateway in a process of its own that may have so many files open."""
    path = folder / "gateway.json"
    path.write_bytes(cluster.config().to_json())
    with (folder / "log").open("wb") as log:
        started = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", _LOWERED, str(soft), str(hard), "--config", str(path)),
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert started.stdout is not None
    try:
        _, url = (await started.stdout.readline()).decode().split()
        yield url, started
    finally:
        started.terminate()
        await started.wait()


async def test_the_limit_is_raised_as_far_as_it_goes(tmp_path: Path) -> None:
    async with (
        Cluster.running() as cluster,
        process(cluster, tmp_path, 64, FILES) as (_, started),
    ):
        assert resource.prlimit(started.pid, resource.RLIMIT_NOFILE) == (FILES, FILES)


async def test_at_the_limit_clients_are_told_and_no_worker_is_blamed(tmp_path: Path) -> None:
    async with (
        Cluster.running(decoders=("a",)) as cluster,
        process(cluster, tmp_path, FILES, FILES) as (url, started),
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
    ):
        step = cluster.decode["a"][0].plan.step = asyncio.Semaphore(0)

        async def ask(number: int) -> tuple[int, str, str | None]:
            body = {**BODY, "prompt": f"number {number}"}
            for last in (False, False, True):
                try:
                    async with http.post(url + "/v1/completions", json=body) as response:
                        text = await response.text()
                        return response.status, text, response.headers.get("Retry-After")
                except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
                    # This process was too slow: the connection ended as idle before its request.
                    if last:
                        raise
            raise AssertionError

        requests = {asyncio.create_task(ask(number)) for number in range(CLIENTS)}
        # Those that are refused are told so while the others are at work.
        served = (FILES - 60) // (1 + PER_SAMPLE)
        while sum(one.done() for one in requests) < CLIENTS - 2 * served:
            await asyncio.wait(
                {one for one in requests if not one.done()}, return_when="FIRST_COMPLETED"
            )
        for _ in range(3 * CLIENTS):
            step.release()
        answers = await asyncio.gather(*requests)
        done = [text for status, text, _ in answers if status == 200]
        assert len(done) >= served // 2
        assert all(text.strip().endswith("data: [DONE]") for text in done)
        for status, text, retry_after in answers:
            if status != 200:
                error = json.loads(text)["error"]
                assert (status, error["code"]) == (429, "rate_limit_exceeded")
                assert (error["type"], retry_after) == ("rate_limit_error", "1")
        async with http.get(url + "/workers") as response:
            workers = (await response.json())["workers"]
        assert [(one["state"], one["times_broken"]) for one in workers] == [("good", 0)] * 2
        # As good as before, and nothing is left over.
        assert (await ask(CLIENTS))[0] == 200
        log = (tmp_path / "log").read_text()
        assert "Too many open files" not in log
        assert "Traceback" not in log
        assert started.returncode is None


async def test_clients_that_only_connect_do_not_keep_others_out(tmp_path: Path) -> None:
    async with (
        Cluster.running(decoders=("a",)) as cluster,
        process(cluster, tmp_path, FILES, FILES) as (url, _),
    ):
        host, port = url.removeprefix("http://").split(":")
        idle = [await asyncio.open_connection(host, int(port)) for _ in range(CLIENTS)]
        async with aiohttp.ClientSession() as http:
            while True:
                async with http.post(url + "/generate", json={"model": "a", "text": "x"}) as one:
                    if one.status == 200:
                        break
                    assert one.status == 429
        for _, writer in idle:
            writer.close()


def test_a_request_that_can_never_be_served_is_no_case_for_trying_again() -> None:
    descriptors = Descriptors(WorkerClient(), lambda: 2)
    with pytest.raises(BadRequest, match="split the request"), descriptors.reserve(10**9):
        pass


def test_what_is_reserved_is_free_again() -> None:
    descriptors = Descriptors(WorkerClient(), lambda: 2)
    most = descriptors.capacity // PER_SAMPLE
    for _ in range(2):
        with descriptors.reserve(most - 1), pytest.raises(GatewayBusy), descriptors.reserve(2):
            pass
    with descriptors.reserve(1):
        descriptors.clients = descriptors.capacity
        with pytest.raises(GatewayBusy), descriptors.reserve(1):
            pass


@pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "EADDRNOTAVAIL"])
def test_the_gateways_own_trouble_is_not_a_workers(name: str) -> None:
    worker = PrefillWorker("p", "http://127.0.0.1:1", "127.0.0.1", 2)
    error = OSError(getattr(errno, name), name)
    assert is_own(error)
    with pytest.raises(GatewayBusy), reaching(worker):
        raise error
    key = aiohttp.client_reqrep.ConnectionKey("127.0.0.1", 1, False, True, None, None, None)
    with pytest.raises(GatewayBusy), reaching(worker):
        raise aiohttp.ClientConnectorError(key, error)
    with pytest.raises(WorkerUnreachable), reaching(worker):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")


async def test_a_probe_that_could_not_be_made_says_nothing() -> None:
    """No descriptor is left while workers are asked."""
    async with running(SERVERS) as gateway:
        assert (await gateway.post("/generate", {"model": "a", "text": "x"}))[0] == 200
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (10, hard))
        try:
            await asyncio.sleep(10 * SERVERS.every)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert all(one.state == "good" for one in gateway.app[GATEWAY].pool)
        assert not gateway.app[GATEWAY].health.transitions


# Clients that stop in the middle.

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "STALL_SECONDS", 0.2)
    monkeypatch.setattr(listener, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(listener, "READ_SECONDS", 0.2)


@pytest.fixture
async def listening(hasty: None) -> AsyncIterator[tuple[Setup, int]]:
    """A gateway behind its own listener, and the port."""
    async with running() as gateway:
        server = gateway.runner
        made = listener.HttpListener(server, gateway.app[GATEWAY].descriptors)
        yield gateway, await made.start("127.0.0.1", 0)
        made.stop()


async def send(port: int, *parts: bytes) -> bytes:
    """All that comes back until the gateway closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    "parts",
    [
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n",),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b'5\r\n{"mod\r\n'),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b'5\r\n{"m'),
        (HEAD + b"Content-Length: 50\r\n\r\n", b'{"model":'),
        (HEAD + b"Content-Length: 50\r\nContent-Encoding: gzip\r\n\r\n",),
    ],
)
async def test_a_body_that_stops_is_ended(
    listening: tuple[Setup, int], parts: tuple[bytes, ...]
) -> None:
    _, port = listening
    answer = await send(port, *parts)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    assert json.loads(body)["error"]["code"] == "request_timeout"


@pytest.mark.parametrize(
    "parts",
    [
        (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\n", b"hello"),
        (
            HEAD + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"5\r\nhello\r\n",
        ),
    ],
)
async def test_a_body_that_is_garbage_is_refused(
    listening: tuple[Setup, int], caplog: pytest.LogCaptureFixture, parts: tuple[bytes, ...]
) -> None:
    _, port = listening
    answer = await send(port, *parts)
    assert answer.startswith(b"HTTP/1.1 400")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error["type"] == "invalid_request_error"
    assert not [one for one in caplog.records if one.exc_info]


@pytest.mark.parametrize("part", [b"P", HEAD, HEAD + b"X: " + b"y" * 1000])
async def test_a_head_that_stops_is_ended(listening: tuple[Setup, int], part: bytes) -> None:
    gateway, port = listening
    assert await send(port, part) == b""
    assert gateway.app[GATEWAY].descriptors.clients == 0


async def test_a_kept_connection_may_rest(listening: tuple[Setup, int]) -> None:
    """Longer than a head may take: only a request that has begun must go on."""
    _, port = listening
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        length = int(re.search(rb"Content-Length: (\d+)", head)[1])  # type: ignore[index]
        await reader.readexactly(length)
        await asyncio.sleep(2 * listener.HEAD_SECONDS)
    writer.close()


async def test_a_slow_body_is_taken(listening: tuple[Setup, int]) -> None:
    _, port = listening
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    content = json.dumps({"model": "a", "prompt": "one"}).encode()
    writer.write(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(content))
    for byte in content:
        writer.write(bytes([byte]))
        await asyncio.sleep(listener.STALL_SECONDS / 20)
    assert (await reader.read()).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_stream_that_is_not_read_is_ended(listening: tuple[Setup, int]) -> None:
    """Its workers are set free."""
    gateway, port = listening
    gateway.decode().plan.deltas = [{"content": "x" * 2**20}] * 64
    body = json.dumps(CHAT).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**10)
    writer.write(HEAD.replace(b"/completions", b"/chat/completions"))
    writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
    await gateway.decode().saw_hang_up()
    assert gateway.pending() == 0
    assert gateway.app[GATEWAY].descriptors.clients == 0
    writer.close()


async def test_answers_that_are_not_read_are_ended(listening: tuple[Setup, int]) -> None:
    """A client sends requests and takes nothing; those at work are not stopped by another rule."""
    gateway, port = listening
    _, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**10)

    async def send_on() -> None:
        while True:
            writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 16)
            await writer.drain()
            await asyncio.sleep(0)

    with pytest.raises(ConnectionError):
        await send_on()
    assert gateway.app[GATEWAY].descriptors.clients == 0
    assert (await gateway.post("/v1/completions", {"model": "a", "prompt": "x"}))[0] == 200


async def test_a_stream_that_is_read_slowly_goes_on(listening: tuple[Setup, int]) -> None:
    """Longer than one may stand still."""
    gateway, port = listening
    gateway.decode().plan.deltas = [{"content": "x" * 2**22}] * 4
    body = json.dumps({**CHAT, "stream_options": {"include_usage": True}}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**16)
    writer.write(HEAD.replace(b"/completions", b"/chat/completions"))
    writer.write(b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    taken = b""
    began = asyncio.get_running_loop().time()
    while piece := await reader.read(2**20):
        taken = taken[-16:] + piece
        if asyncio.get_running_loop().time() < began + 6 * listener.READ_SECONDS:
            await asyncio.sleep(listener.READ_SECONDS / 8)
    assert b"data: [DONE]" in taken
    writer.close()


def test_raising_keeps_what_is_high_enough() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert raise_limit() == min(hard, 2**20)
