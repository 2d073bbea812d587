"""A cluster on Ray: place its actors, follow their ends, scale decoders, take all down."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ps_sglang.errors import LaunchError, ServingEndedError, UsageError
from ps_sglang.gateway.config import is_loopback
from ps_sglang.gateway_admin import RefusedError
from ps_sglang.gateway_http import Credentials, Json, from_environment
from ps_sglang.launch.ray import placement
from ps_sglang.launch.ray.command import ActorCommand, ChildEnd
from ps_sglang.launch.ray.placement import GATEWAY_BUNDLE, ActorPool, Bundle
from ps_sglang.launch.ray.prepare import RayPlan
from ps_sglang.launch.ray.scaling import Scaler
from ps_sglang.launch.restarts import Restarts
from ps_sglang.launch.serve import try_line
from ps_sglang.launch.spec import ClusterSpec, in_url
from ps_sglang.progress import OnProgress
from ps_sglang.workers.client import READY_STATES, WorkersClient

if TYPE_CHECKING:
    from ps_sglang.launch.ray.session import Actor, RaySession

GATEWAY: Final = "gateway"
_PROGRESS_S: Final = 5.0
_TICK_S: Final = 1.0
_ANSWER_S: Final = 5.0
_GATEWAY_END_S: Final = 5.0
_END_S: Final = 40.0
"""A worker that leaves lets its requests end for up to 30 s."""


@dataclass
class _Process:
    """An actor and what it runs; `run` is Ray's promise of its end, None while it is down.

    `leaving`: it was told to stop. `given_up`: it ended more often than it is restarted.
    """

    actor: Actor
    command: ActorCommand
    restarts: Restarts
    pool: ActorPool | None
    run: Any = None
    restart_at: float | None = None
    leaving: bool = False
    given_up: bool = False


@dataclass
class _PoolState:
    """The workers of a pool: `started` counts all that there ever were, for their names."""

    pool: ActorPool
    scaler: Scaler
    started: int = 0
    workers: list[_Process] = field(default_factory=list)

    @property
    def size(self) -> int:
        """How many are there, or come back."""
        return sum(not (one.leaving or one.given_up) for one in self.workers)


class RayCluster:
    """The actors of a plan on the Ray cluster behind `session`."""

    def __init__(
        self,
        plan: RayPlan,
        session: RaySession,
        on_progress: OnProgress,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = ""
        """Where the gateway serves clients; empty before it has been placed."""
        self._spec = plan.spec
        self._plan = plan
        self._session = session
        self._on_progress = on_progress
        self._clock = clock
        self._roots = placement.model_roots(plan.spec, plan.base, plan.reports)
        pools = placement.pools(plan.spec, plan.base, plan.reports, has_gpus=session.has_gpus)
        self._pools = [_PoolState(one, Scaler(one.bounds, plan.spec.ray.scaling)) for one in pools]
        self._gateway: _Process | None = None
        self._admin_url = ""
        self._is_up = False
        self._ready_s = 0.0

    @property
    def ready_line(self) -> str:
        """What a person needs to use the cluster."""
        decoders = list(dict.fromkeys(name for one in self._pools for name in one.pool.decoders))
        line = (
            f"ready {self.url} after {self._ready_s:.1f} s; decoders: {', '.join(decoders)}; logs: "
            "ray logs, Ray's dashboard"
        )
        if self._admin_url != self.url:
            line += f"; for admins: {self._admin_url}"
        return line + try_line(self.url, decoders[0], self._spec)

    def start(self) -> None:
        """Bring all up; it answers requests when this returns.

        Raises UsageError if Ray's nodes and the specification do not go together, and LaunchError
        if what was asked for cannot be placed, or ends.
        """
        self._refuse_unreachable()
        began = self._clock()
        deadline = began + self._spec.ready_timeout_s
        bundles: dict[str, Bundle] = {GATEWAY: GATEWAY_BUNDLE}
        for state in self._pools:
            for number in range(state.pool.bounds.least):
                bundles[state.pool.worker_name(number)] = state.pool.bundle
        self._place(bundles, deadline)
        names = list(bundles)
        self._start_gateway(names.index(GATEWAY))
        # A worker that finds no gateway ends.
        self._wait(lambda: () if self._gateway_answers() else (GATEWAY,), deadline)
        for state in self._pools:
            for _ in range(state.pool.bounds.least):
                self._start_worker(state, names.index(state.pool.worker_name(state.started)))
        self._wait(self._not_joined, deadline)
        self._is_up = True
        self._ready_s = self._clock() - began

    def wait(self) -> None:
        """Serve on; raises ServingEndedError when nothing is served any more, and will not be."""
        while True:
            self.step()

    def step(self) -> None:
        """Wait a second, or for an end, and do what is to be done then."""
        self._follow()
        try:
            listed = self._workers().list()
        except UsageError:
            return  # the gateway is down, and comes back
        for state in self._pools:
            self._scale(state, listed)

    def close(self) -> None:
        """End all actors, the gateway first: workers need not say goodbye to it."""
        workers = [one for state in self._pools for one in state.workers]
        if self._gateway is not None:
            self._end([self._gateway], _GATEWAY_END_S)
        self._end(workers, _END_S)

    def _refuse_unreachable(self) -> None:
        hosts, spec = self._session.hosts, self._spec
        if len(hosts) < 2:
            return
        if is_loopback(spec.host):
            raise UsageError(
                f"the Ray cluster has {len(hosts)} hosts, and only one of them reaches a gateway "
                f"at {spec.host}: give --host 0.0.0.0, and --api-keys"
            )
        if spec.api_keys is None or from_environment().api_key is None:
            raise UsageError(
                f"the Ray cluster has {len(hosts)} hosts, and workers join from them with an "
                "admin's key: give --api-keys, and that key in $PS_SGLANG_API_KEY"
            )

    def _place(self, bundles: dict[str, Bundle], deadline: float) -> None:
        """Reserve all bundles, or raise LaunchError with what is missing."""
        for name, bundle in bundles.items():
            self._on_progress(f"{name}: {placement.described(bundle)}")
        self._session.reserve(list(bundles.values()))
        while not self._session.is_reserved(_PROGRESS_S):
            missing = placement.shortage(bundles, self._session.nodes, self._session.free)
            if self._clock() > deadline:
                raise LaunchError(
                    f"Ray could not place {', '.join(bundles)} within "
                    f"{self._spec.ready_timeout_s:g} s: {missing}"
                )
            self._on_progress(f"waiting for Ray to place all actors: {missing}")

    def _start_gateway(self, bundle: int) -> None:
        actor = self._session.actor(GATEWAY, GATEWAY_BUNDLE, bundle)
        spec = self._spec = self._with_ports(actor)
        host = spec.host
        if host in ("0.0.0.0", "::"):
            host = self._session.get(actor.host.remote())
        scheme = "http" if spec.tls_cert is None else "https"
        self.url = self._admin_url = f"{scheme}://{in_url(host)}:{spec.port}"
        if spec.admin_port is not None:
            admin_host = host if spec.admin_host in (None, "0.0.0.0", "::") else spec.admin_host
            self._admin_url = f"{scheme}://{in_url(str(admin_host))}:{spec.admin_port}"
        words = placement.gateway_words(spec, self._plan.base, self._roots)
        self._gateway = self._run(actor, GATEWAY, words, None)

    def _with_ports(self, actor: Actor) -> ClusterSpec:
        """The specification with ports that stay the same when the gateway comes back."""
        spec, chosen = self._spec, {}
        asked = [name for name in ("port", "admin_port") if getattr(spec, name) == 0]
        if asked:
            ports = self._session.get(actor.free_ports.remote(len(asked)))
            chosen = dict(zip(asked, ports, strict=True))
        return replace(spec, **chosen)

    def _start_worker(self, state: _PoolState, bundle: int | None = None) -> None:
        """One more worker of a pool, in a reserved bundle or wherever Ray finds room."""
        pool = state.pool
        name = pool.worker_name(state.started)
        state.started += 1
        actor = self._session.actor(name, pool.bundle, bundle)
        base, gateway = self._plan.base, self._admin_url
        words = placement.worker_words(self._spec, base, pool, gateway, self._roots)
        state.workers.append(self._run(actor, name, words, pool))

    def _run(
        self, actor: Actor, name: str, words: Sequence[str], pool: ActorPool | None
    ) -> _Process:
        log_dir = self._spec.log_dir
        command = ActorCommand(
            name,
            tuple(words),
            self._plan.secret,
            # What clients of the gateway show, workers show it, too.
            {"PS_SGLANG_API_KEY": key} if (key := from_environment().api_key) else {},
            None if log_dir is None else str(log_dir.absolute()),
        )
        restarts = Restarts(self._spec.max_restarts)
        return _Process(actor, command, restarts, pool, actor.run.remote(command))

    def _wait(self, missing: Callable[[], Sequence[str]], deadline: float) -> None:
        """Wait until nothing is `missing`, and tell what is; raises LaunchError."""
        reported = self._clock()
        while waiting := missing():
            self._follow()
            now = self._clock()
            if now > deadline:
                raise LaunchError(
                    f"not ready within {self._spec.ready_timeout_s:g} s: {', '.join(waiting)}; "
                    "`ray logs` and `ray list actors` tell more"
                )
            if now - reported > _PROGRESS_S:
                self._on_progress(f"waiting for {', '.join(waiting)}")
                reported = now

    def _gateway_answers(self) -> bool:
        try:
            self._workers().list()
        except RefusedError:
            raise
        except UsageError:
            return False
        return True

    def _not_joined(self) -> list[str]:
        """Which pools have not all their workers in the cluster yet, in words."""
        try:
            listed = self._workers().list()
        except UsageError:
            return [GATEWAY]
        waiting = []
        for state in self._pools:
            ready = sum(
                state.pool.has(one["role"], one["decoders"]) and one["state"] in READY_STATES
                for one in listed
            )
            if ready < (wanted := state.pool.bounds.least):
                waiting.append(f"{state.pool.name} ({ready} of {wanted})")
        return waiting

    def _workers(self) -> WorkersClient:
        certificate = self._spec.tls_cert
        if certificate is not None and not Path(certificate).exists():
            certificate = None  # it is on the gateway's host only
        credentials = Credentials(from_environment().api_key, certificate)
        return WorkersClient(self._admin_url, _ANSWER_S, credentials)

    def _scale(self, state: _PoolState, listed: Sequence[Json]) -> None:
        pool = state.pool
        if pool.bounds.least == pool.bounds.most:
            return
        requests = sum(
            one["load"]["requests"] for one in listed if pool.has(one["role"], one["decoders"])
        )
        before = state.size
        wanted = state.scaler.wanted(requests, before, self._clock())
        if wanted == before:
            return
        self._on_progress(f"{pool.name}: {requests} requests; from {before} to {wanted} workers")
        for _ in range(before, wanted):
            self._start_worker(state)
        if wanted < before:
            # The last come is the first to go: those of the reservation are never given up.
            last = [one for one in state.workers if not (one.leaving or one.given_up)][-1]
            last.leaving = True
            last.actor.stop.remote()

    def _follow(self) -> None:
        """Wait up to a second for the end of a command, and mend what has ended."""
        processes = [one for state in self._pools for one in state.workers]
        if self._gateway is not None:
            processes.append(self._gateway)
        ended = self._session.wait([one.run for one in processes if one.run is not None], _TICK_S)
        for process in processes:
            if process.run is not None and process.run in ended:
                self._ended(process, self._session.end_of(process.run))
            elif process.restart_at is not None and self._clock() >= process.restart_at:
                process.restart_at = None
                process.run = process.actor.run.remote(process.command)
        for state in self._pools:
            state.workers = [one for one in state.workers if not (one.leaving and one.run is None)]

    def _ended(self, process: _Process, end: ChildEnd) -> None:
        name, process.run = process.command.name, None
        if process.leaving:
            self._session.kill(process.actor)
            self._on_progress(f"{name} has left")
            return
        message = f"{name} ended with {end.status}"
        if not self._is_up:
            raise LaunchError(
                f"{message} while the cluster was starting", worker=name, log_tail=end.log_tail
            )
        seconds = process.restarts.died(self._clock())
        if seconds is not None:
            process.restart_at = self._clock() + seconds
            count = f"{process.restarts.count} of {process.restarts.most}"
            self._on_progress(f"{message}; restart {count} in {seconds:g} s\n{end.log_tail}")
            return
        process.given_up = True
        self._session.kill(process.actor)
        limit = f"{message}, and {process.restarts.most} restarts in ten minutes are the limit"
        if process.pool is None or all(
            one.given_up for state in self._pools for one in state.workers
        ):
            raise ServingEndedError(limit, worker=name, log_tail=end.log_tail)
        self._on_progress(f"{limit}\n{end.log_tail}")

    def _end(self, processes: Sequence[_Process], seconds: float) -> None:
        for process in processes:
            process.leaving = True
            process.actor.stop.remote()
        self._session.wait_all([one.run for one in processes if one.run is not None], seconds)
        for process in processes:
            self._session.kill(process.actor)
