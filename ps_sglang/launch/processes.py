"""The processes of one launcher: how each is started, what ended and why."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from signal import Signals
from typing import Final
from urllib.parse import urlsplit

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.errors import LaunchError
from ps_sglang.gateway.access.key_file import digest_of, new_secret
from ps_sglang.gateway.peers.sockets import http_socket_of
from ps_sglang.gateway_http import Credentials
from ps_sglang.launch import procfs
from ps_sglang.launch.environment import (
    fork_server_environment,
    plugin_environment,
    worker_environment,
)
from ps_sglang.launch.fork_server_client import ForkServerClient
from ps_sglang.launch.gateway_config import gateway_config
from ps_sglang.launch.log_rotation import LogRotation
from ps_sglang.launch.messages import Start, StartMethod
from ps_sglang.launch.ports import free_ports
from ps_sglang.launch.prepare import Plan
from ps_sglang.launch.readiness import (
    Probe,
    gateway_lives,
    gateway_process_lives,
    gateway_url,
    is_ready,
    tail,
)
from ps_sglang.launch.spec import WorkerSpec

GATEWAY: Final = "gateway"
FORK_SERVER: Final = "fork-server"
_GATEWAY_GRACE_S: Final = 2.0
# On a CPU nothing outlives a killed worker; a GPU's memory is released by the worker itself.
_WORKER_GRACE_S: Final = {True: 0.0, False: 6.0}


@dataclass(frozen=True)
class GatewayAddress:
    """Where the gateway serves clients, and where admins."""

    url: str
    admin_url: str


class Processes:
    """The fork server of a plan, and under it the workers and the gateway, by their names."""

    def __init__(self, plan: Plan, key_file: Path | None = None) -> None:
        """Raises UsageError if `key_file` holds no cluster's key; None makes a key."""
        self.key = ClusterKey.make() if key_file is None else ClusterKey.load(key_file)
        self.gateway = GatewayAddress("", "")
        """Where the gateway is found, once it is."""
        self._plan = plan
        self._workers = {worker.name: worker for worker in plan.workers}
        # Numbered, as a decoder's name could make a socket's path too long.
        self._folders = {name: f"w{number}" for number, name in enumerate(self._workers)}
        self.gateways = tuple(map(gateway_name, range(plan.spec.gateway_processes)))
        """The names of the gateway's processes; workers join the first one."""
        logged = (FORK_SERVER, *self.gateways, *self._workers)
        self.logs = LogRotation(list(map(self.log, logged)))
        self.logs.remove()  # an earlier cluster's, in a reused folder
        self._runtime = Path(tempfile.mkdtemp(prefix="ps_sglang-"))
        if key_file is None:
            key_file = self._runtime / "cluster.key"
            self.key.save(key_file)
        self._key_file = key_file.resolve()
        environ = fork_server_environment(
            os.environ, self._runtime, plan.architecture, plan.host, cpu=plan.cpu
        )
        # Where clients need keys it needs one, too.
        key = None if plan.spec.api_keys is None else new_secret()
        self.credentials = Credentials(key, plan.spec.tls_cert)
        """What the launcher shows its own gateway."""
        # What all workers import and load once, on a CPU.
        shared = plan.base.path if plan.cpu and plan.workers else None
        self.link = ForkServerClient(self._runtime, shared, environ, self.log(FORK_SERVER))

    @property
    def dead(self) -> set[str]:
        """Those that have ended, and were not started again."""
        return set(self.link.exits)

    @property
    def memory_bytes(self) -> int:
        """Memory of all processes now, shared pages counted once (sum of PSS)."""
        pids = [self.link.pid, *procfs.descendants(self.link.pid)]
        return sum(procfs.proportional_bytes(pid) for pid in pids)

    def worker(self, name: str) -> WorkerSpec:
        """A worker as it is started now."""
        return self._workers[name]

    def moves(self, name: str) -> bool:
        """Whether a restart of the worker has another address, so that it must join anew.

        Decode workers keep a prefill worker's sockets in mind, by its bootstrap server. They would
        wait for its dead process.
        """
        return name in self._workers and self._workers[name].bootstrap_port is not None

    def restart_worker(self, name: str) -> None:
        """Start a worker in place of one that has ended."""
        if self.moves(name):
            (port,) = free_ports(1, but=self._plan.spec.ports)
            self._workers[name] = self._workers[name].moved(port)
        self.start_worker(name)

    def start_worker(self, name: str) -> None:
        """Start a worker, on the ports and with the weights of its specification."""
        worker, plan = self._workers[name], self._plan
        folder = self._runtime / self._folders[name]
        shutil.rmtree(folder, ignore_errors=True)  # of its process before
        env = worker_environment(os.environ, folder, worker.role, cpu=plan.cpu)
        argv = worker.argv
        if plan.gpus is not None:
            argv = plan.gpus.started_now(name, argv)
            env |= plan.gpus.environment(name)
        self.link.start(
            Start(
                name=name,
                module="sglang.launch_server",
                argv=argv,
                env=env
                | plugin_environment(
                    plan.fingerprint,
                    worker,
                    allow_unverified=plan.spec.allow_unverified,
                    allow_unsafe=plan.spec.allow_unsafe,
                    shares_weights=plan.cpu and plan.shares_model(worker),
                    key_file=self._key_file,
                    model_roots=plan.model_roots,
                ),
                log=str(worker.log),
                start_method=StartMethod.FORK if plan.cpu else StartMethod.EXEC,
            )
        )

    def start_gateway(self, name: str = GATEWAY) -> None:
        """Start a process of the gateway, which knows no worker yet.

        It serves on the ports that it had before.
        """
        file = self._runtime / f"{name}.json"
        key = self.credentials.api_key
        digest = None if key is None else digest_of(key)
        restarts = name in self.link.pids
        config = gateway_config(
            self._plan,
            digest,
            self._key_file,
            process=self.gateways.index(name),
            peers=self._runtime,
            restarts=restarts,
        )
        if restarts and name == GATEWAY:
            config = replace(config, port=_port(self.gateway.url))
            if config.admin_port is not None:
                config = replace(config, admin_port=_port(self.gateway.admin_url))
        file.write_bytes(config.to_json())
        self.link.start(
            Start(
                name=name,
                module="ps_sglang.gateway",
                argv=("--config", str(file)),
                env={},
                log=str(self.log(name)),
                start_method=StartMethod.EXEC,
            )
        )

    def find_gateway(self) -> bool:
        """Whether the gateway has written where it is, which `gateway` then tells."""
        log = self.log(GATEWAY)
        if (url := gateway_url(log)) is None:
            return False
        self.gateway = GatewayAddress(url, gateway_url(log, "admin") or url)
        return True

    def silent_gateways(self) -> list[str]:
        """The gateway's processes that do not serve yet."""
        return [name for name in self.gateways if gateway_url(self.log(name)) is None]

    def probe(self, name: str) -> Probe:
        """Begin to ask a worker, or the gateway, until it answers or is cancelled."""
        if is_gateway(name) and len(self.gateways) > 1:
            # The port is another's as well.
            path = http_socket_of(self._runtime, self.gateways.index(name))
            probe = Probe(name, partial(gateway_process_lives, path))
        elif name == GATEWAY:
            probe = Probe(name, partial(gateway_lives, self.gateway.url, self.credentials))
        else:
            worker, pid = self._workers[name], partial(self.link.pids.get, name)
            probe = Probe(name, partial(is_ready, worker.local_host, worker.port, pid, self.key))
        probe.start()
        return probe

    def stop_gateway(self) -> None:
        """End the gateway, once its requests have ended or had their time; may be called again."""
        for name in reversed(self.gateways):
            self.link.stop(name, self._plan.spec.drain_s + _GATEWAY_GRACE_S)

    def close(self) -> None:
        """End all; may be called again."""
        self.stop_gateway()
        self.link.close(_WORKER_GRACE_S[self._plan.cpu])
        shutil.rmtree(self._runtime, ignore_errors=True)  # only if the fork server was killed

    def ending(self, name: str) -> str:
        """How a process ended, in words."""
        status = self.link.exits[name]
        return f"was killed by {Signals(-status).name}" if status < 0 else f"ended with {status}"

    def failure(
        self, name: str, message: str, kind: type[LaunchError] = LaunchError
    ) -> LaunchError:
        """The error of what happened to a process, with the end of its log."""
        log = self.log(name)
        return kind(f"{message}; log: {log}", worker=name, log_tail=tail(log))

    def log(self, name: str) -> Path:
        """Where a process writes."""
        return self._plan.log_dir / f"{name}.log"


def gateway_name(process: int) -> str:
    """What a process of the gateway is called."""
    return GATEWAY if process == 0 else f"{GATEWAY}-{process}"


def is_gateway(name: str) -> bool:
    """Whether a process of that name is one of the gateway's; all others are workers."""
    return name == GATEWAY or name.startswith(f"{GATEWAY}-")


def _port(url: str) -> int:
    return urlsplit(url).port or 0
