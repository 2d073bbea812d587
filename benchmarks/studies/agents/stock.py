"""Stock SGLang's servers, as forks of one host, so that a sceptic's machine can hold them."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from ps_sglang.errors import LaunchError
from ps_sglang.launch import flags
from ps_sglang.launch.environment import fork_server_environment, worker_environment
from ps_sglang.launch.fork_server_client import ForkServerClient
from ps_sglang.launch.messages import Loaded, Start, StartMethod
from ps_sglang.launch.ports import free_ports
from ps_sglang.launch.readiness import Probe, is_ready, read_ahead, tail
from ps_sglang.launch.spec import LOOPBACK, Role

_READY_S: Final = 300.0
_POLL_S: Final = 0.2
_WIRE: Final = ("--disaggregation-transfer-backend", "zmq")


@dataclass(frozen=True)
class StockServer:
    """A stock server to start; `role` None is one without disaggregation."""

    name: str
    model: Path
    role: Role | None
    pool_tokens: int


@dataclass(frozen=True)
class RunningServer:
    """A stock server that answers; `bootstrap` is a prefill worker's second port."""

    name: str
    role: Role | None
    pid: int
    url: str
    bootstrap: int


@contextmanager
def stock_servers(
    servers: Sequence[StockServer], log_dir: Path, context_length: int
) -> Iterator[list[RunningServer]]:
    """Run them until the block ends; all models must have one tokenizer.

    Raises LaunchError if one ends, or is not ready in time.
    """
    runtime = Path(tempfile.mkdtemp(prefix="ps_sglang-"))
    environ = fork_server_environment(os.environ, runtime, "LlamaForCausalLM", LOOPBACK, cpu=True)
    link = ForkServerClient(
        runtime,
        servers[0].model,
        environ,
        log_dir / "fork-server.log",
        "benchmarks.studies.agents.stock_fork_server",
    )
    try:
        for model in {server.model for server in servers}:
            read_ahead(model.glob("*.safetensors"))
        deadline = time.monotonic() + _READY_S
        _wait(link, lambda: link.import_s is not None, deadline, "the fork server", log_dir)
        ports = iter(free_ports(3 * len(servers)))
        started = [
            _start(
                link,
                server,
                runtime / f"w{index}",
                [next(ports) for _ in range(3)],
                log_dir,
                context_length,
            )
            for index, server in enumerate(servers)
        ]
        yield _ready(link, started, deadline, log_dir)
    finally:
        link.close(0.0)  # nothing of a server without a GPU needs time to end
        shutil.rmtree(runtime, ignore_errors=True)


@dataclass(frozen=True)
class _Started:
    server: StockServer
    port: int
    bootstrap: int


def _start(
    link: ForkServerClient, server: StockServer, folder: Path, ports: Sequence[int], log_dir: Path,
    context_length: int,
) -> _Started:  # fmt: skip
    port, rendezvous, bootstrap = ports
    runs_like = server.role or Role.PREFILL  # all cores, as a prefill worker has
    default = flags.defaults(runs_like, cpu=True, context_length=context_length)
    default = {**default, "--max-total-tokens": str(server.pool_tokens)}
    words = [
        "--model-path", str(server.model), "--host", "127.0.0.1", "--port", str(port),
        "--nccl-port", str(rendezvous),
    ]  # fmt: skip
    if server.role is not None:
        words += ["--disaggregation-mode", server.role.value, *_WIRE]
    if server.role is Role.PREFILL:
        words += ["--disaggregation-bootstrap-port", str(bootstrap)]
    if server.role is Role.DECODE:
        words += ["--disaggregation-decode-enable-radix-cache"]
    link.send(
        Start(
            name=server.name,
            module="sglang.launch_server",
            argv=(*words, *flags.merge(default, ())),
            env=worker_environment(os.environ, folder, runs_like, cpu=True),
            log=str(log_dir / f"{server.name}.log"),
            start_method=StartMethod.FORK,
        )
    )
    return _Started(server, port, bootstrap)


def _ready(
    link: ForkServerClient, started: Sequence[_Started], deadline: float, log_dir: Path
) -> list[RunningServer]:
    probes = [
        Probe(name, partial(is_ready, LOOPBACK, worker.port, partial(link.pids.get, name)))
        for worker in started
        for name in (worker.server.name,)
    ]
    for probe in probes:
        probe.start()
    try:
        for worker, probe in zip(started, probes, strict=True):
            _wait(link, partial(getattr, probe, "ready"), deadline, worker.server.name, log_dir)
    finally:
        for probe in probes:
            probe.cancel()
    link.send(Loaded())
    return [
        RunningServer(
            worker.server.name,
            worker.server.role,
            link.pids[worker.server.name],
            f"http://127.0.0.1:{worker.port}",
            worker.bootstrap,
        )
        for worker in started
    ]


def _wait(
    link: ForkServerClient, done: Callable[[], bool], deadline: float, name: str, log_dir: Path
) -> None:
    while not done():
        link.wait_for(lambda: link.gone or bool(link.exits), _POLL_S)
        dead = next(iter(link.exits), "host" if link.gone else None)
        if dead is not None or time.monotonic() > deadline:
            log = log_dir / f"{dead or name}.log"
            why = f"{dead} ended" if dead else f"{name} was not ready within {_READY_S:g} s"
            raise LaunchError(f"{why}; log: {log}", worker=dead or name, log_tail=tail(log))
