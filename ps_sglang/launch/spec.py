"""What to launch: the user's wishes (ClusterSpec) and one engine process each (WorkerSpec)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ps_sglang.errors import UsageError
from ps_sglang.gateway.config import origin_problem


class Role(StrEnum):
    """A worker's half of SGLang's prefill/decode disaggregation."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True)
class ClusterSpec:
    """One cluster, as asked for; the command line's defaults are these.

    `prefill` is the base model and `decoders` the decoders, as `ps_sglang.models.resolve.resolve`
    takes them; `prefill_replicas` prefill workers share the base's work. `join` is the URL of a
    running cluster's gateway that the workers join; None starts a gateway. It listens on `host`
    and `port`, where 0 means any free one; workers listen on the loopback only. Web pages of
    `cors_origins` may use it, `*` for all. `transfer_backend` is `zmq`, `mooncake` or `nixl`; None
    chooses by device. `allow_unverified` admits decoders that have no manifest. `log_dir` gets one
    log file a worker; None makes a folder under the cache folder. Every worker must answer within
    `ready_timeout_s` seconds of the start. `engine_args` are SGLang flags for all workers;
    `prefill_engine_args` and `decode_engine_args` are those of one role, and win over them.
    """

    prefill: str
    decoders: tuple[str, ...]
    prefill_replicas: int = 1
    join: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    cors_origins: tuple[str, ...] = ()
    transfer_backend: str | None = None
    allow_unverified: bool = False
    log_dir: Path | None = None
    ready_timeout_s: float = 300.0
    engine_args: tuple[str, ...] = ()
    prefill_engine_args: tuple[str, ...] = ()
    decode_engine_args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if problems := list(_problems(self)):
            raise UsageError("; ".join(problems))

    def role_args(self, role: Role) -> tuple[str, ...]:
        """All the user's SGLang flags for one role, the winning ones last."""
        role_args = self.prefill_engine_args if role is Role.PREFILL else self.decode_engine_args
        return self.engine_args + role_args


def _problems(spec: ClusterSpec) -> list[str]:
    problems = []
    least = 1 if spec.join is None else 0
    if spec.join == "":
        problems.append("--join is empty, must be the URL of a running cluster's gateway")
    if not spec.host:
        problems.append("--host is empty, must be an address of this machine")
    if not spec.decoders and (spec.join is None or not spec.prefill_replicas):
        problems.append("no decoder given: name at least one with --decoders")
    if spec.prefill_replicas < least:
        problems.append(f"--prefill-replicas is {spec.prefill_replicas}, must be at least {least}")
    if not 0 <= spec.port <= 65535:
        problems.append(f"--port is {spec.port}, must be 0 (any free port) to 65535")
    problems += filter(None, map(origin_problem, spec.cors_origins))
    if not spec.ready_timeout_s > 0:  # "not a number" neither
        problems.append(f"--ready-timeout is {spec.ready_timeout_s:g}, must be above 0 seconds")
    return problems


@dataclass(frozen=True)
class EventPorts:
    """ZMQ addresses at which a worker publishes its events and answers the gateway's requests."""

    publishes: str
    control: str


@dataclass(frozen=True)
class WorkerSpec:
    """One SGLang server: its place in the cluster and its whole command line."""

    name: str
    role: Role
    model_name: str
    model_path: Path
    port: int
    bootstrap_port: int | None
    events: EventPorts
    argv: tuple[str, ...]
    log: Path

    @property
    def url(self) -> str:
        """Base address of the worker's HTTP server."""
        return f"http://127.0.0.1:{self.port}"
