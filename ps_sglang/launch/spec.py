"""What to launch: the user's wishes (ClusterSpec) and one engine process each (WorkerSpec)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

from ps_sglang.errors import UsageError
from ps_sglang.gateway.config import (
    Adapter,
    LogFormat,
    access_problems,
    admin_port_problems,
    endpoint_problem,
    origin_problem,
)
from ps_sglang.gateway.limits import DEFAULT_LIMITS, GatewayLimits
from ps_sglang.launch.ray.keys import NO_RAY_KEYS, RayKeys
from ps_sglang.launch.resources import NO_RESOURCES, Resources, gpus_problem

BOOTSTRAP_FLAG: Final = "--disaggregation-bootstrap-port"
LOOPBACK: Final = "127.0.0.1"
_COUNTED: Final = re.compile(r"(.+)\*(\d+)")


class Role(StrEnum):
    """A worker's part of SGLang's prefill/decode disaggregation, as SGLang calls its mode."""

    PREFILL = "prefill"
    DECODE = "decode"
    AGGREGATED = "null"
    """Both parts in one server."""


@dataclass(frozen=True)
class Entry:
    """One of `--decoders`: the model, and its own number of workers if it ends in `*N`.

    A specification file may also say what GPUs and which SGLang flags its workers have.
    """

    model: str
    replicas: int | None = None
    resources: Resources = NO_RESOURCES
    engine_args: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Taken apart at the `*`."""
        counted = _COUNTED.fullmatch(text)
        return cls(text) if counted is None else cls(counted[1], int(counted[2]))


@dataclass(frozen=True)
class ClusterSpec:
    """One cluster, as asked for; the command line's defaults are these.

    `prefill` is the base model and `decoders` the decoders, as `ps_sglang.models.resolve.resolve`
    takes them; one that ends in `*N` has N workers, any other has `decode_replicas`. All LoRA
    adapters share workers, whose model is the base. `prefill_replicas` prefill workers share the
    base's work, each with `prefill_resources`; a worker of adapters has `adapter_resources`. `gpus`
    are those to place workers on, as `--gpus` has them; None for all. `dry_run` plans only.
    `on` is `ray` for actors of the Ray cluster at `ray_address`, of which `ray` says more; None for
    processes of this machine.
    `one_worker` has one server do it all, for adapters. `gateway_only` starts none, as all join
    later. `join` is the URL of a running cluster's gateway that the workers join; None
    starts a gateway. It listens on `host` and `port`, where 0 means any free one, in
    `gateway_processes` processes. Web pages of
    `cors_origins` may use it, `*` for all. `api_keys` is the file of clients' keys; without one the
    gateway serves this machine only, unless `no_keys`. `tls_cert` and `tls_key` are the gateway's
    certificate and its key, and `limits` what it takes on. With `admin_port` the routes for admins
    are on that port only, of `admin_host` or else `host`. `cluster_key_file` holds the key of the
    workers; None makes one, or finds that of the cluster that is joined. While the cluster runs,
    weights may be loaded from below `model_roots`; without any, from the folders in which those
    given here lie. `allow_unsafe` admits SGLang's flags that run what clients send.
    `transfer_backend` is `zmq`, `mooncake` or `nixl`; None chooses by device. `advertise` is the
    address under which other hosts reach the workers; they listen on the loopback only without one.
    `max_restarts` times in ten minutes a process that died is started again. `allow_unverified`
    admits decoders that have no manifest.
    `log_dir` gets one log file a worker; None makes a folder under the cache folder. `log_format`
    is that of the gateway's log and the launcher's lines. Traces go to the OTLP collector at
    `otlp_endpoint`, None for none. Every worker must answer within `ready_timeout_s` seconds of the
    start. A gateway that is told to stop first lets its requests end, for up to `drain_s` seconds.
    `worker_port` is that of the only worker, None or 0 for any free one. `engine_args` are SGLang
    flags for all workers; `prefill_engine_args` and `decode_engine_args` are those of one role, and
    win over them.
    """

    prefill: str
    decoders: tuple[str | Entry, ...]
    prefill_replicas: int = 1
    decode_replicas: int = 1
    gateway_only: bool = False
    one_worker: bool = False
    gpus: str | None = None
    dry_run: bool = False
    on: str | None = None
    ray_address: str | None = None
    ray: RayKeys = NO_RAY_KEYS
    prefill_resources: Resources = NO_RESOURCES
    adapter_resources: Resources = NO_RESOURCES
    join: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    gateway_processes: int = 1
    cors_origins: tuple[str, ...] = ()
    admin_host: str | None = None
    admin_port: int | None = None
    cluster_key_file: Path | None = None
    model_roots: tuple[Path, ...] = ()
    allow_unsafe: bool = False
    limits: GatewayLimits = DEFAULT_LIMITS
    api_keys: Path | None = None
    no_keys: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    transfer_backend: str | None = None
    advertise: str | None = None
    max_restarts: int = 5
    allow_unverified: bool = False
    log_dir: Path | None = None
    log_format: LogFormat = LogFormat.TEXT
    otlp_endpoint: str | None = None
    ready_timeout_s: float = 300.0
    drain_s: float = 0.0
    worker_port: int | None = None
    engine_args: tuple[str, ...] = ()
    prefill_engine_args: tuple[str, ...] = ()
    decode_engine_args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if problems := list(_problems(self)):
            raise UsageError("; ".join(problems))

    @property
    def entries(self) -> tuple[Entry, ...]:
        """`decoders`, taken apart."""
        return tuple(Entry.parse(one) if isinstance(one, str) else one for one in self.decoders)

    @property
    def ports(self) -> frozenset[int | None]:
        """The ports that were asked for, though what will listen there has yet to start."""
        return frozenset((self.port, self.admin_port, self.worker_port))

    @property
    def resources(self) -> dict[str, Resources]:
        """All that is said of workers' GPUs, by whose they are."""
        return {
            "prefill": self.prefill_resources,
            "adapters": self.adapter_resources,
            **{f"decoder {entry.model}": entry.resources for entry in self.entries},
        }

    def role_args(self, role: Role) -> tuple[str, ...]:
        """All the user's SGLang flags for one role, the winning ones last."""
        role_args = {Role.PREFILL: self.prefill_engine_args, Role.DECODE: self.decode_engine_args}
        return self.engine_args + role_args.get(role, ())


def _problems(spec: ClusterSpec) -> list[str]:
    problems = []
    least = 1 if spec.join is None and not spec.gateway_only else 0
    if spec.join == "":
        problems.append("--join is empty, must be the URL of a running cluster's gateway")
    if spec.ray_address is not None and spec.on != "ray":
        problems.append("--ray-address goes with --on ray only")
    if not spec.host:
        problems.append("--host is empty, must be an address of this machine")
    if spec.gateway_only:
        problems += _gateway_only_problems(spec)
    elif not spec.decoders and (spec.join is None or not spec.prefill_replicas):
        problems.append("no decoder given: name at least one with --decoders")
    if spec.prefill_replicas < least:
        problems.append(f"--prefill-replicas is {spec.prefill_replicas}, must be at least {least}")
    if spec.decode_replicas < 1:
        problems.append(f"--decode-replicas is {spec.decode_replicas}, must be at least 1")
    if spec.one_worker:
        problems += _one_worker_problems(spec)
    if spec.advertise == "":
        problems.append("--advertise is empty, must be an address of this machine")
    if spec.max_restarts < 0:
        problems.append(f"--max-restarts is {spec.max_restarts}, must be at least 0")
    if not 0 <= spec.port <= 65535:
        problems.append(f"--port is {spec.port}, must be 0 (any free port) to 65535")
    if spec.gateway_processes < 1:
        problems.append(f"--gateway-processes is {spec.gateway_processes}, must be at least 1")
    problems += admin_port_problems(
        spec.port, spec.admin_host, spec.admin_port, has_keys=spec.api_keys is not None
    )
    problems += [
        f"decoder {entry.model}*{entry.replicas}: it must have at least 1 worker"
        for entry in spec.entries
        if entry.replicas is not None and entry.replicas < 1
    ]
    if spec.gpus is not None and (problem := gpus_problem(spec.gpus)):
        problems.append(problem)
    problems += [
        f"{name}: {problem}" for name, one in spec.resources.items() for problem in one.problems()
    ]
    problems += filter(None, map(origin_problem, spec.cors_origins))
    if spec.otlp_endpoint is not None:
        problems += filter(None, [endpoint_problem(spec.otlp_endpoint)])
    problems += [f"--{name.replace('_', '-')} {text}" for name, text in spec.limits.problems()]
    problems += access_problems(
        spec.host,
        has_keys=spec.api_keys is not None,
        no_keys=spec.no_keys,
        tls=(spec.tls_cert, spec.tls_key),
    )
    if not spec.ready_timeout_s > 0:  # "not a number" neither
        problems.append(f"--ready-timeout is {spec.ready_timeout_s:g}, must be above 0 seconds")
    if not 0 <= spec.drain_s < math.inf:
        problems.append(f"--drain is {spec.drain_s:g}, must be 0 or more seconds")
    if spec.drain_s and spec.gateway_processes > 1:
        problems.append("--drain does not go with --gateway-processes: its processes end in turn")
    if spec.worker_port is not None and not 0 <= spec.worker_port <= 65535:
        problems.append(f"--port is {spec.worker_port}, must be 0 (any free port) to 65535")
    return problems


def _gateway_only_problems(spec: ClusterSpec) -> list[str]:
    given = {
        "--decoders": bool(spec.decoders),
        "--prefill-replicas": spec.prefill_replicas > 0,
        "--join": spec.join is not None,
        "--one-worker": spec.one_worker,
    }
    return [
        f"{flag} does not go with --gateway-only, which starts no worker: start them with "
        "ps-sglang worker"
        for flag, is_given in given.items()
        if is_given
    ]


# A second such worker would prefill each conversation again, which is what a cluster is to save.
_ALONE: Final = "it runs a single server; leave --one-worker away for more workers"
_NO_ROLES: Final = "give SGLang's flags as they are, as the worker has both roles"


def _one_worker_problems(spec: ClusterSpec) -> list[str]:
    reasons = {
        "--prefill-replicas": (spec.prefill_replicas > 1, _ALONE),
        "--decode-replicas": (spec.decode_replicas > 1, _ALONE),
        "--join": (spec.join is not None, "it brings workers of one role to a cluster"),
        "--transfer-backend": (spec.transfer_backend is not None, "no KV pages travel"),
        "--prefill-engine-args": (bool(spec.prefill_engine_args), _NO_ROLES),
        "--decode-engine-args": (bool(spec.decode_engine_args), _NO_ROLES),
    }
    return [
        f"{flag} does not go with --one-worker: {reason}"
        for flag, (given, reason) in reasons.items()
        if given
    ]


@dataclass(frozen=True)
class EventPorts:
    """ZMQ addresses at which a worker publishes its events and answers the gateway's requests."""

    publishes: str
    control: str


@dataclass(frozen=True)
class WorkerSpec:
    """One SGLang server: its place in the cluster and its whole command line.

    `adapters` are the LoRA decoders that it begins with, None for a server that takes none. Others
    reach it at `host`, and its own machine at `local_host`.
    """

    name: str
    role: Role
    model_name: str
    model_path: Path
    port: int
    bootstrap_port: int | None
    events: EventPorts
    argv: tuple[str, ...]
    log: Path
    adapters: tuple[Adapter, ...] | None = None
    host: str = LOOPBACK
    local_host: str = LOOPBACK

    @property
    def decoders(self) -> tuple[str, ...]:
        """What clients can ask of it: adapters, and what it serves without one."""
        if self.role is Role.PREFILL:
            return ()
        return (*(adapter.decoder for adapter in self.adapters or ()), self.model_name)

    def moved(self, bootstrap_port: int) -> WorkerSpec:
        """The same prefill worker with its bootstrap server on another port."""
        argv = list(self.argv)
        argv[argv.index(BOOTSTRAP_FLAG) + 1] = str(bootstrap_port)
        return replace(self, bootstrap_port=bootstrap_port, argv=tuple(argv))

    @property
    def url(self) -> str:
        """Base address of the worker's HTTP server."""
        return f"http://{in_url(self.host)}:{self.port}"


def in_url(host: str) -> str:
    """A host as URLs and endpoints have it: an IPv6 address stands in brackets."""
    return f"[{host}]" if ":" in host else host
