"""A running cluster: bring it up, know its workers, take it down."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from signal import Signals
from types import TracebackType
from typing import Final, Self

from ps_sglang.errors import LaunchError
from ps_sglang.launch import procfs
from ps_sglang.launch.environment import (
    fork_server_environment,
    plugin_environment,
    worker_environment,
)
from ps_sglang.launch.fork_server_client import ForkServerClient
from ps_sglang.launch.gateway_config import gateway_config
from ps_sglang.launch.log_rotation import LogRotation
from ps_sglang.launch.membership import Membership
from ps_sglang.launch.messages import Loaded, Start, StartMethod
from ps_sglang.launch.outlook import candidates, outlook, sharing
from ps_sglang.launch.prepare import Plan, prepare
from ps_sglang.launch.readiness import Probe, gateway_url, knows_workers, read_ahead, tail
from ps_sglang.launch.spec import ClusterSpec, Role, WorkerSpec
from ps_sglang.progress import OnProgress

GATEWAY: Final = "gateway"
FORK_SERVER: Final = "fork-server"
_PROGRESS_S: Final = 5.0
_POLL_S: Final = 0.1
_ROTATION_S: Final = 10.0
_GATEWAY_GRACE_S: Final = 2.0
# On a CPU nothing outlives a killed worker; a GPU's memory is released by the worker itself.
_WORKER_GRACE_S: Final = {True: 0.0, False: 6.0}


@dataclass(frozen=True)
class Worker:
    """A worker as it is now."""

    name: str
    role: Role
    model: str
    decoders: tuple[str, ...]
    url: str
    log: Path
    pid: int
    alive: bool


class Cluster:
    """Prefill workers, decode workers and the gateway; or one worker of both roles.

    With `ClusterSpec.join` it is a part of another cluster, whose gateway `url` then names.

        with Cluster.start(ClusterSpec("base", ("a", "b"), port=0)) as cluster:
            openai.OpenAI(base_url=cluster.url + "/v1", api_key="none")

    Leaving the block ends every process and removes every temporary file, whatever happened.
    """

    def __init__(self, plan: Plan, on_progress: OnProgress) -> None:
        self.plan = plan
        self.url = ""
        self.ready_s = 0.0
        self._on_progress = on_progress
        self._began = time.monotonic()
        self._joined = (
            Membership(plan.spec.join, allow_unverified=plan.spec.allow_unverified)
            if plan.spec.join
            else None
        )
        if self._joined is not None:
            self._joined.require_gateway()
        names = (FORK_SERVER, GATEWAY, *(worker.name for worker in plan.workers))
        self._logs = LogRotation([self._log(name) for name in names], on_progress)
        self._logs.remove()  # an earlier cluster's, in a reused folder
        self._runtime = Path(tempfile.mkdtemp(prefix="ps_sglang-"))
        self._environ = fork_server_environment(
            os.environ, self._runtime, plan.architecture, cpu=plan.cpu
        )
        self._link = ForkServerClient(
            self._runtime,
            plan.base.path if plan.cpu else None,
            self._environ,
            plan.log_dir / f"{FORK_SERVER}.log",
        )

    @classmethod
    def start(cls, spec: ClusterSpec, on_progress: OnProgress = lambda line: None) -> Self:
        """Bring up a cluster; it answers requests when this returns.

        `on_progress` takes the progress, a line at a time.

        Raises UsageError before anything is started if the specification cannot work. Raises
        LaunchError if a worker ends or misses the deadline; everything is stopped then.
        """
        cluster = cls(prepare(spec), on_progress)
        try:
            cluster._bring_up()
        except BaseException:
            cluster.stop()
            raise
        return cluster

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def workers(self) -> tuple[Worker, ...]:
        """All workers, dead ones too."""
        return tuple(
            Worker(
                spec.name,
                spec.role,
                spec.model_name,
                spec.decoders,
                spec.url,
                spec.log,
                self._link.pids[spec.name],
                spec.name not in self._link.exits,
            )
            for spec in self.plan.workers
        )

    @property
    def memory_bytes(self) -> int:
        """Memory of all its processes now, shared pages counted once (sum of PSS)."""
        pids = [self._link.pid, *procfs.descendants(self._link.pid)]
        return sum(procfs.proportional_bytes(pid) for pid in pids)

    def wait(self) -> None:
        """Serve on, reporting each worker that dies; keep the log files short.

        Raises LaunchError if the gateway or the fork server dies: nothing is served any more.
        """
        reported: set[str] = set()
        while True:
            self._link.wait_for(lambda: self._link.gone or bool(self._dead - reported), _ROTATION_S)
            self._logs.rotate()
            if self._link.gone:
                raise self._failure(FORK_SERVER, "the fork server died, and all workers with it")
            for name in self._dead - reported:
                message = f"{name} {self._ending(name)}"
                if name == GATEWAY:
                    raise self._failure(name, message)
                self._on_progress(f"{message}; {self._outlook()}. Log: {self._log(name)}")
                reported.add(name)

    def stop(self) -> None:
        """End every process of the cluster; may be called again."""
        if self._joined is not None:
            self._joined.leave()
        self._link.stop(GATEWAY, _GATEWAY_GRACE_S)
        self._link.close(_WORKER_GRACE_S[self.plan.cpu])
        shutil.rmtree(self._runtime, ignore_errors=True)  # only if the fork server was killed

    def _outlook(self) -> str:
        workers = self.plan.workers
        dead = {worker.url for worker in workers if worker.name in self._dead}
        return outlook(candidates(self.url, workers), dead)

    @property
    def _dead(self) -> set[str]:
        return set(self._link.exits)

    def _bring_up(self) -> None:
        deadline = self._began + self.plan.spec.ready_timeout_s
        for report in self.plan.reports:
            self._on_progress(f"decoder {report.name}: {report.description}")
        for line in sharing(self.plan.workers):
            self._on_progress(line)
        read_ahead(self.plan.weight_files)
        self._wait_until_imported(deadline)
        for index, worker in enumerate(self.plan.workers):
            self._start_worker(index, worker)
        if self._joined is None:
            self._start_gateway()
        self._wait_until_ready(deadline)
        self._link.send(Loaded())
        if self._joined is None:
            self.url = self._wait_for_gateway(deadline)
        else:
            self._joined.join(self.plan.workers)
            self.url = self._joined.url
        self.ready_s = time.monotonic() - self._began

    def _start_gateway(self) -> None:
        config = self._runtime / "gateway.json"
        config.write_bytes(gateway_config(self.plan).to_json())
        self._link.send(
            Start(
                name=GATEWAY,
                module="ps_sglang.gateway",
                argv=("--config", str(config)),
                env={},
                log=str(self._log(GATEWAY)),
                start_method=StartMethod.EXEC,
            )
        )

    def _start_worker(self, index: int, worker: WorkerSpec) -> None:
        # Numbered, as a decoder's name could make a socket's path too long.
        folder = self._runtime / f"w{index}"
        env = worker_environment(os.environ, folder, worker.role, cpu=self.plan.cpu)
        self._link.send(
            Start(
                name=worker.name,
                module="sglang.launch_server",
                argv=worker.argv,
                env=env
                | plugin_environment(
                    self.plan.fingerprint,
                    worker,
                    allow_unverified=self.plan.spec.allow_unverified,
                    shares_weights=self.plan.cpu and self.plan.shares_model(worker),
                ),
                log=str(worker.log),
                start_method=StartMethod.FORK if self.plan.cpu else StartMethod.EXEC,
            )
        )

    def _wait_until_imported(self, deadline: float) -> None:
        if self.plan.cpu:
            self._on_progress("importing SGLang, once for all workers")
            self._wait(lambda: () if self._link.import_s is not None else (FORK_SERVER,), deadline)

    def _wait_until_ready(self, deadline: float) -> None:
        probes = {
            worker.name: Probe(worker.name, worker.port, partial(self._link.pids.get, worker.name))
            for worker in self.plan.workers
        }
        for probe in probes.values():
            probe.start()
        try:
            self._wait(lambda: [n for n, probe in probes.items() if not probe.ready], deadline)
        finally:
            for probe in probes.values():
                probe.cancel()

    def _wait_for_gateway(self, deadline: float) -> str:
        log = self._log(GATEWAY)

        def missing() -> Sequence[str]:
            url = gateway_url(log)
            return () if url is not None and knows_workers(url) else (GATEWAY,)

        self._wait(missing, deadline)
        return gateway_url(log) or ""

    def _wait(self, missing: Callable[[], Sequence[str]], deadline: float) -> None:
        """Wait until nothing is `missing`, telling what is, and what no longer is.

        Raises LaunchError if a process ends meanwhile, or the deadline passes.
        """
        waiting = list(missing())
        reported = time.monotonic()
        while waiting:
            self._link.wait_for(lambda: self._link.gone or bool(self._dead), _POLL_S)
            self._fail_if_dead()
            now = time.monotonic()
            if now > deadline:
                limit = self.plan.spec.ready_timeout_s
                raise self._failure(waiting[0], f"{waiting[0]} was not ready within {limit:g} s")
            still = list(missing())
            for name in sorted(set(waiting) - set(still)):
                self._on_progress(f"{name} ready, {now - self._began:.1f} s")
            waiting = still
            if waiting and now - reported > _PROGRESS_S:
                self._on_progress(f"{', '.join(waiting)} loading ... {now - self._began:.0f} s")
                reported = now

    def _fail_if_dead(self) -> None:
        for name in self._dead:
            raise self._failure(name, f"{name} {self._ending(name)} while the cluster was starting")
        if self._link.gone:
            raise self._failure(FORK_SERVER, "the fork server died while the cluster was starting")

    def _failure(self, name: str, message: str) -> LaunchError:
        log = self._log(name)
        return LaunchError(f"{message}; log: {log}", worker=name, log_tail=tail(log))

    def _ending(self, name: str) -> str:
        status = self._link.exits[name]
        return f"was killed by {Signals(-status).name}" if status < 0 else f"ended with {status}"

    def _log(self, name: str) -> Path:
        return self.plan.log_dir / f"{name}.log"
