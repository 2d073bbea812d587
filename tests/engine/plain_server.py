"""SGLang servers outside a cluster: one plain server, or workers started by hand."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ps_sglang.launch import procfs

CPU_FLAGS = (
    "--device", "cpu", "--dtype", "float32", "--attention-backend", "torch_native",
    "--sampling-backend", "pytorch", "--grammar-backend", "xgrammar",
    "--disable-overlap-schedule", "--sleep-on-idle", "--max-total-tokens", "4096",
    "--skip-server-warmup", "--enable-metrics", "--log-level-http", "warning",
)  # fmt: skip


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def sglang_server(
    model: Path,
    log: Path,
    *flags: str,
    host: str = "127.0.0.1",
    env: Mapping[str, str] = os.environ,
    prefix: Sequence[str] = (),
) -> Iterator[str]:
    """Run `python -m sglang.launch_server` and yield its URL; `prefix` goes before the command."""
    port = free_port()
    command = [
        *prefix, sys.executable, "-m", "sglang.launch_server", "--model-path", str(model),
        "--host", host, "--port", str(port), *CPU_FLAGS, *flags,
    ]  # fmt: skip
    environ = {**env, "PS_SGLANG_ENABLE": "1", "OMP_NUM_THREADS": "1", "SGLANG_HOST_IP": host}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environ, start_new_session=True
        )
    try:
        yield f"http://{host}:{port}"
    finally:
        pids = [process.pid, *procfs.descendants(process.pid)]
        memory = [path for pid in pids for path in procfs.shared_memory_files(pid)]
        os.killpg(process.pid, 15)
        process.wait()
        for path in memory:  # SGLang leaves its load statistics behind
            path.unlink(missing_ok=True)


def wait_until_healthy(url: str, deadline_s: float = 200.0) -> None:
    """Return once `url` answers /health."""
    limit = time.monotonic() + deadline_s
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < limit, f"{url} is not up after {deadline_s:g} s"
            time.sleep(0.2)  # between polls of a process that has no other way to say so
