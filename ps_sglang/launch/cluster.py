"""A running cluster: bring it up, know its workers, take it down."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ps_sglang.gateway_http import Credentials
from ps_sglang.launch.deadline import Deadline
from ps_sglang.launch.dry_run import planned
from ps_sglang.launch.membership import Membership
from ps_sglang.launch.messages import Loaded
from ps_sglang.launch.open_files import few_files, hard_limit
from ps_sglang.launch.outlook import candidates, outlook, sharing
from ps_sglang.launch.prepare import Plan, prepare
from ps_sglang.launch.processes import FORK_SERVER, GATEWAY, Processes
from ps_sglang.launch.readiness import read_ahead
from ps_sglang.launch.spec import ClusterSpec, Role
from ps_sglang.launch.supervisor import Supervisor
from ps_sglang.progress import OnProgress

_PROGRESS_S: Final = 5.0
_POLL_S: Final = 0.1


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

    With `ClusterSpec.join` it is a part of another cluster, whose gateway `url` then names. Either
    way its workers join a gateway, and hold leases there.

        with Cluster.start(ClusterSpec("base", ("a", "b"), port=0)) as cluster:
            openai.OpenAI(base_url=cluster.url + "/v1", api_key="none")

    Leaving the block ends every process and removes every temporary file, whatever happened. `key`
    opens the workers' own ports.
    """

    def __init__(self, plan: Plan, on_progress: OnProgress) -> None:
        self.plan = plan
        self.ready_s = 0.0
        self._on_progress = on_progress
        self._began = time.monotonic()
        self._membership: Membership | None = None
        if plan.spec.join:
            self._membership = self._member_of(plan.spec.join, None)
            self._membership.require_gateway()
        key_file = plan.spec.cluster_key_file
        if self._membership is not None:
            key_file = self._membership.key_file(key_file)
        self._processes = Processes(plan, key_file)
        self.key = self._processes.key
        self._link = self._processes.link

    @classmethod
    def start(cls, spec: ClusterSpec, on_progress: OnProgress = lambda line: None) -> Self:
        """Bring up a cluster; it answers requests when this returns.

        `on_progress` takes the progress, a line at a time.

        Raises UsageError before anything is started if the specification cannot work. Raises
        LaunchError if a worker ends or misses the deadline; everything is stopped then.
        """
        return cls.start_plan(prepare(spec), on_progress)

    @classmethod
    def start_plan(cls, plan: Plan, on_progress: OnProgress) -> Self:
        """Bring up what is planned; as `start`."""
        cluster = cls(plan, on_progress)
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
    def url(self) -> str:
        """The gateway's address; empty before there is one."""
        return self._processes.gateway.url if self.plan.spec.join is None else self.admin_url

    @property
    def admin_url(self) -> str:
        """Where admins are served; empty before there is a gateway."""
        return "" if self._membership is None else self._membership.url

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
        return self._processes.memory_bytes

    def wait(self) -> None:
        """Serve on, and restart what dies or hangs.

        Raises ServingEndedError when nothing is served any more, and will not be.
        """
        assert self._membership is not None, "it has been brought up"
        spec, workers = self.plan.spec, [worker.name for worker in self.plan.workers]
        supervisor = Supervisor(
            self._processes,
            self._membership,
            workers if spec.join else [*self._processes.gateways, *workers],
            most=spec.max_restarts,
            ready_s=spec.ready_timeout_s,
            outlook=self._outlook,
            on_progress=self._on_progress,
        )
        try:
            supervisor.run()
        finally:
            supervisor.close()

    def stop(self) -> None:
        """End every process of the cluster; may be called again."""
        if self._membership is not None and self.plan.spec.join:
            self._membership.leave()
        elif self._membership is not None:
            if self.plan.spec.drain_s:  # until it has ended it needs its workers' leases
                self._processes.stop_gateway()
            self._membership.close()
        self._processes.close()

    def _outlook(self) -> str:
        workers, ended = self.plan.workers, self._processes.dead
        dead = {worker.url for worker in workers if worker.name in ended}
        credentials = None if self.plan.spec.join else self._processes.credentials
        return outlook(candidates(self.admin_url, workers, credentials), dead)

    def _bring_up(self) -> None:
        deadline = self._deadline()
        for report in self.plan.reports:
            self._on_progress(f"decoder {report.name}: {report.description}")
        for line in (*sharing(self.plan.workers), *self.plan.warnings, *planned(self.plan)):
            self._on_progress(line)
        if self._membership is None:
            processes = self.plan.spec.gateway_processes
            for line in few_files(hard_limit(), len(self.plan.workers), processes):
                self._on_progress(line)
        read_ahead(self.plan.weight_files)
        self._wait_until_imported(deadline)
        *first, last = self.plan.waves
        for wave in first:
            self._start(wave)
            self._wait_until_ready(wave, deadline)
        self._start(last)
        if self._membership is None:
            for name in self._processes.gateways:
                self._processes.start_gateway(name)
        self._wait_until_ready(last, deadline)
        self._link.send(Loaded())
        if self._membership is None:
            self._wait(lambda: () if self._processes.find_gateway() else (GATEWAY,), deadline)
            self._wait(self._processes.silent_gateways, deadline)
            gateway = self._processes.gateway
            self._membership = self._member_of(gateway.admin_url, self._processes.credentials)
        self._wait(self._membership.join, deadline)
        self._membership.keep()
        self.ready_s = time.monotonic() - self._began

    def _member_of(self, gateway: str, credentials: Credentials | None) -> Membership:
        spec = self.plan.spec
        return Membership(
            gateway,
            self.plan.workers,
            allow_unverified=spec.allow_unverified,
            named=not spec.join,
            credentials=credentials,
            on_progress=self._on_progress,
        )

    def _deadline(self) -> Deadline:
        gpus = () if self.plan.gpus is None else self.plan.gpus.budgets
        logs = {name: self._processes.log(name) for name in gpus}
        return Deadline(self.plan.spec.ready_timeout_s, self._began, logs)

    def _start(self, wave: Sequence[str]) -> None:
        for name in wave:
            self._processes.start_worker(name)

    def _wait_until_imported(self, deadline: Deadline) -> None:
        if self.plan.cpu and self.plan.workers:
            self._on_progress("importing SGLang, once for all workers")
            self._wait(lambda: () if self._link.import_s is not None else (FORK_SERVER,), deadline)

    def _wait_until_ready(self, names: Sequence[str], deadline: Deadline) -> None:
        probes = {name: self._processes.probe(name) for name in names}
        try:
            self._wait(lambda: [n for n, probe in probes.items() if not probe.ready], deadline)
        finally:
            for probe in probes.values():
                probe.cancel()

    def _wait(self, missing: Callable[[], Sequence[str]], deadline: Deadline) -> None:
        """Wait until nothing is `missing`, telling what is, and what no longer is.

        Raises LaunchError if a process ends meanwhile, or the deadline passes.
        """
        waiting = list(missing())
        reported = time.monotonic()
        while waiting:
            self._link.wait_for(lambda: self._link.gone or bool(self._processes.dead), _POLL_S)
            self._fail_if_dead()
            now = time.monotonic()
            if late := deadline.missed(waiting, now):
                raise self._processes.failure(waiting[0], late)
            still = list(missing())
            for name in sorted(set(waiting) - set(still)):
                self._on_progress(f"{name} ready, {now - self._began:.1f} s")
            waiting = still
            if waiting and now - reported > _PROGRESS_S:
                self._on_progress(f"{', '.join(waiting)} loading ... {now - self._began:.0f} s")
                reported = now

    def _fail_if_dead(self) -> None:
        for name in self._processes.dead:
            message = f"{name} {self._processes.ending(name)} while the cluster was starting"
            raise self._processes.failure(name, message)
        if self._link.gone:
            message = "the fork server died while the cluster was starting"
            raise self._processes.failure(FORK_SERVER, message)
