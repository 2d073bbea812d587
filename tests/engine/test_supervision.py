"""Real engines are killed, and nobody comes: they are back, and the next answers are exact."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ps_sglang.gateway_http import GatewayRefused, GatewayUnreachable, call
from tests.engine.served import Launch, Models, Served, supervised
from tests.support.engine_client import RefusedError, assert_conserved, generate
from tests.support.hf_reference import expected

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Prompts = Callable[[int, int], list[list[int]]]


@pytest.fixture(scope="module")
def served(llama: Models, launch: Launch) -> Iterator[Served]:
    """A supervised cluster."""
    with supervised(launch(llama, "a")) as served:
        yield served


def workers(served: Served) -> dict[str, dict[str, Any]]:
    """The gateway's workers by name, none while it is away."""
    try:
        listed = call(f"{served.cluster.url}/workers", timeout_s=10.0)["workers"]
    except (GatewayRefused, GatewayUnreachable):
        return {}
    return {one["name"]: one for one in listed}


def listener(url: str) -> int:
    """The process that listens there."""
    port = int(url.rpartition(":")[2])
    (pid,) = {
        int(one.pid)
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port and one.pid
    }
    return pid


def pids(served: Served) -> dict[str, int]:
    """The processes that listen, by name."""
    cluster = served.cluster
    urls = {"gateway": cluster.url} | {worker.name: worker.url for worker in cluster.workers}
    return {name: listener(url) for name, url in urls.items()}


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def kill(pid: int) -> None:
    """Returns when it is dead, so that no answer of it is taken for one of its successor."""
    os.kill(pid, signal.SIGKILL)
    while not gone(pid):
        time.sleep(0.01)


def assert_serves_again(served: Served, decoder: str, prompts: Prompts) -> None:
    """The first answer, whenever it comes, is exact, and so is the next."""
    models = served.models
    for ids in prompts(2, 60):
        want = expected(models.base, models.decoders[decoder], ids).tokens
        while True:
            try:
                answer = generate(served.cluster, decoder, ids)
            except RefusedError as error:
                if error.status not in (502, 503):
                    raise
                time.sleep(0.1)  # between tries, as a client's
            except OSError:
                time.sleep(0.1)  # the gateway itself is away
            else:
                break
        assert answer["output_ids"] == want


@pytest.mark.parametrize("name", ["decode-a", "prefill-0", "gateway"])
def test_what_is_killed_comes_back(served: Served, prompts: Prompts, name: str) -> None:
    """The others live on: no worker is started again because another one was."""
    assert_serves_again(served, "a", prompts)
    before = pids(served)
    url = served.cluster.url if name == "gateway" else workers(served)[name]["url"]
    kill(listener(url))
    assert_serves_again(served, "a", prompts)
    assert set(workers(served)) == {"prefill-0", "decode-a"}
    assert {one for one, pid in pids(served).items() if pid != before[one]} == {name}
    assert_conserved(served.cluster)


def test_a_worker_of_its_own_looks_after_itself(
    served: Served, prompts: Prompts, tmp_path: Path
) -> None:
    models = served.models
    command = [
        *(sys.executable, "-m", "ps_sglang.cli", "worker", "--role", "decode"),
        *("--base", f"base={models.base}", "--model", f"b={models.decoders['b']}"),
        *("--gateway", served.cluster.url, "--device", "cpu", "--log-dir", str(tmp_path)),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            lines = iter(process.stderr.readline, "")
            assert any(" joined " in line for line in lines)
            (worker,) = [one for one in workers(served).values() if one["decoder"] == "b"]
            assert worker["lease_seconds"] is not None
            assert_serves_again(served, "b", prompts)
            kill(listener(worker["url"]))
            assert_serves_again(served, "b", prompts)
            assert any("is back after" in line for line in lines)
            process.send_signal(signal.SIGTERM)
            assert "stopped" in "".join(lines)
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert set(workers(served)) == {"prefill-0", "decode-a"}
