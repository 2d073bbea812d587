"""One plain SGLang server, to compare with; and what it takes to ask a server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ps_sglang.errors import LaunchError
from ps_sglang.launch import procfs
from ps_sglang.launch.environment import threads
from ps_sglang.launch.ports import free_ports
from ps_sglang.launch.spec import Role

_READY_S = 240.0
_LOG_LINES = 10
_FLAGS = (
    "--device cpu --dtype float32 --attention-backend torch_native --sampling-backend pytorch "
    "--disable-overlap-schedule --sleep-on-idle --max-total-tokens 10240 --skip-server-warmup"
)


@dataclass(frozen=True)
class PlainServer:
    """A healthy server: where it listens, its first process, seconds from start to healthy."""

    url: str
    pid: int
    ready_s: float


@contextmanager
def plain_server(model: Path, log: Path, flags: Sequence[str] = ()) -> Iterator[PlainServer]:
    """Run `python -m sglang.launch_server` without disaggregation; `flags` win over those here.

    The plugin brings the CPU platform, without which SGLang needs AMX; its handoff hooks do
    nothing. Threads are set as for a worker that has the machine to itself.
    """
    (port,) = free_ports(1)
    command = [
        sys.executable, "-m", "sglang.launch_server", "--model-path", str(model),
        "--port", str(port), *_FLAGS.split(), *flags,
    ]  # fmt: skip
    environ = {
        **os.environ,
        "PS_SGLANG_ENABLE": "1",
        "TMPDIR": str(log.parent),  # metrics and sockets are files, which SGLang leaves behind
        "OMP_NUM_THREADS": str(threads(Role.PREFILL)),
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "0",
    }
    began = time.monotonic()
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, env=environ, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ok(f"{url}/health", server, _READY_S, log)
        yield PlainServer(url, server.pid, time.monotonic() - began)
    finally:
        pids = [server.pid, *procfs.descendants(server.pid)]
        memory = [path for pid in pids for path in procfs.shared_memory_files(pid)]
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()
        for path in memory:  # SGLang leaves its load statistics behind
            path.unlink(missing_ok=True)


def generate(url: str, ids: Sequence[int], sampling: Mapping[str, Any]) -> Any:
    """Ask `url`/generate for a whole answer to a prompt of token ids.

    Raises LaunchError if there is none.
    """
    body = {"input_ids": ids, "sampling_params": sampling}
    request = urllib.request.Request(
        f"{url}/generate", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)
    except OSError as error:
        raise LaunchError(f"no answer from {request.full_url}: {error}") from error


def wait_until_ok(url: str, server: subprocess.Popen[bytes], limit_s: float, log: Path) -> None:
    """Ask until the answer is 200.

    Raises LaunchError if the server ends, or does not answer in time.
    """
    limit = time.monotonic() + limit_s
    while server.poll() is None and time.monotonic() < limit:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)  # between polls of a process that has no other way to say so
    start_method = "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
    raise LaunchError(f"no answer from {url}; its log ends:\n{start_method}")
