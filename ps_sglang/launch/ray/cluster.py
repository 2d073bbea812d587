"""A cluster on Ray: place its actors, wait for them, scale decoders, take all down."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from ps_sglang.errors import LaunchError, UsageError
from ps_sglang.gateway_admin import RefusedError
from ps_sglang.gateway_http import Json
from ps_sglang.launch.processes import GATEWAY
from ps_sglang.launch.ray import placement
from ps_sglang.launch.ray.command import ActorCommand
from ps_sglang.launch.ray.placement import GATEWAY_BUNDLE, ActorPool, Bundle
from ps_sglang.launch.ray.prepare import RayPlan
from ps_sglang.launch.ray.processes import ActorProcess, ActorProcesses
from ps_sglang.launch.ray.reach import (
    gateway_urls,
    joining_environment,
    refuse_unreachable,
    workers_client,
)
from ps_sglang.launch.ray.scaling import Scaler
from ps_sglang.launch.serve import try_line
from ps_sglang.launch.spec import ClusterSpec
from ps_sglang.progress import OnProgress
from ps_sglang.workers.client import READY_STATES

if TYPE_CHECKING:
    from ps_sglang.launch.ray.session import Actor, RaySession

_PROGRESS_S: Final = 5.0


@dataclass
class _PoolState:
    """The workers of a pool; `started` counts all that there ever were, for their names."""

    pool: ActorPool
    scaler: Scaler
    started: int = 0
    workers: list[ActorProcess] = field(default_factory=list)


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
        most, drain_s = plan.spec.max_restarts, plan.spec.drain_s
        self._processes = ActorProcesses(session, most, drain_s, on_progress, clock)
        self._roots = placement.model_roots(plan.spec, plan.base, plan.reports)
        pools = placement.pools(plan.spec, plan.base, plan.reports, has_gpus=session.has_gpus)
        self._pools = [_PoolState(one, Scaler(one.bounds, plan.spec.ray.scaling)) for one in pools]
        self._admin_url = ""
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
        refuse_unreachable(self._spec, self._session.hosts)
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
        self._processes.is_up = True
        self._ready_s = self._clock() - began

    def wait(self) -> None:
        """Serve on; raises ServingEndedError when nothing is served any more, and will not be."""
        while True:
            self.step()

    def step(self) -> None:
        """Wait a second, or for an end, and do what is to be done then."""
        self._processes.follow()
        try:
            listed = workers_client(self._spec, self._admin_url).list()
        except UsageError:
            return  # the gateway is down, and comes back
        for state in self._pools:
            self._scale(state, listed)

    def close(self) -> None:
        """End all actors."""
        self._processes.close()

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
        self.url, self._admin_url = gateway_urls(spec, self._session.get(actor.host.remote()))
        words = placement.gateway_words(spec, self._plan.base, self._roots)
        self._run(actor, GATEWAY, words)

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
        state.workers.append(self._run(actor, name, words))

    def _run(self, actor: Actor, name: str, words: Sequence[str]) -> ActorProcess:
        log_dir = self._spec.log_dir
        command = ActorCommand(
            name,
            tuple(words),
            self._plan.secret,
            joining_environment(),
            None if log_dir is None else str(log_dir.absolute()),
        )
        return self._processes.run(actor, command)

    def _wait(self, missing: Callable[[], Sequence[str]], deadline: float) -> None:
        """Wait until nothing is `missing`, and tell what is; raises LaunchError."""
        reported = self._clock()
        while waiting := missing():
            self._processes.follow()
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
            workers_client(self._spec, self._admin_url).list()
        except RefusedError:
            raise
        except UsageError:
            return False
        return True

    def _not_joined(self) -> list[str]:
        """Which pools have not all their workers in the cluster yet, in words."""
        try:
            listed = workers_client(self._spec, self._admin_url).list()
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

    def _scale(self, state: _PoolState, listed: Sequence[Json]) -> None:
        pool = state.pool
        if pool.bounds.least == pool.bounds.most:
            return
        requests = sum(
            one["load"]["requests"] for one in listed if pool.has(one["role"], one["decoders"])
        )
        before = len(state.workers)
        wanted = state.scaler.wanted(requests, before, self._clock())
        if wanted == before:
            return
        self._on_progress(f"{pool.name}: {requests} requests; from {before} to {wanted} workers")
        for _ in range(before, wanted):
            self._start_worker(state)
        if wanted < before:
            # The last come is the first to go: those of the reservation stay.
            self._processes.leave(state.workers.pop())
