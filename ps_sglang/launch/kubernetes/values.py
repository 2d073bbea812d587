"""What differs between the manifests of two clusters: the values of the Helm chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from ps_sglang.errors import UsageError
from ps_sglang.launch.args import parse_args
from ps_sglang.launch.command_lines import check_flags
from ps_sglang.launch.kubernetes.keys import KubernetesKeys, PodResources
from ps_sglang.launch.kubernetes.pods import WorkerPods, worker_pods
from ps_sglang.launch.member import DRAIN_S
from ps_sglang.launch.spec import ClusterSpec
from ps_sglang.launch.specfile import SpecFile, load
from ps_sglang.progress import OnProgress

GATEWAY_PORT: Final = 8000
KEYS: Final = "/etc/ps-sglang/keys"
LOGS: Final = "/var/log/ps-sglang"
PROBE_S: Final = 10
"""Between two probes of a pod."""
UNROUTE_S: Final = 5
"""Until no client is sent any more to a pod that is to end."""

_GATEWAY_DRAIN_S: Final = 30.0
_STOP_S: Final = 15
"""To end the processes of a pod whose requests have ended."""
_START_S: Final = 3600
_LONGEST_START_S: Final = 86_400
_FOR_GATEWAY: Final = (
    "prefill", "cors_origins", "model_roots", "allow_unsafe", "max_concurrent_requests",
    "max_queued_requests", "max_queued_tokens", "request_timeout", "max_sessions", "log_format",
    "otlp_endpoint", "ready_timeout", "engine_args", "prefill_engine_args", "decode_engine_args",
)  # fmt: skip
"""Keys of a specification that the gateway's own has, too."""
_REFUSED: Final = {
    "join": "pods join the gateway of their own manifests",
    "gateway_only": "the gateway has a pod of its own, and so has each worker",
    "one_worker": "it is one process, which needs no manifests",
    "no_keys": "workers join from other hosts, which takes an admin's key",
    "tls_cert": "end TLS before the Service, in an Ingress or a Gateway",
    "tls_key": "end TLS before the Service, in an Ingress or a Gateway",
    "gateway_processes": "only a single process can let its requests end before it does",
    "admin_host": "the gateway's Service has one port",
    "admin_port": "the gateway's Service has one port",
}
_OF_A_MACHINE: Final = (
    "host", "advertise", "cluster_key_file", "api_keys", "log_dir", "max_restarts", "gpus",
)  # fmt: skip
"""Keys in whose place the manifests say something of pods."""


@dataclass(frozen=True)
class GatewayValues:
    """The gateway's pod: `spec` is the specification that it starts with, as YAML.

    It is probed `start_probes` times before it is taken for dead, and has `stop_seconds` to end.
    """

    spec: str
    resources: dict[str, Any]
    start_probes: int
    stop_seconds: int


@dataclass(frozen=True)
class WorkerValues:
    """The pods of one Deployment; `args` are those of `ps-sglang worker` that differ."""

    replicas: int
    args: list[str]
    resources: dict[str, Any]
    start_probes: int
    stop_seconds: int


@dataclass(frozen=True)
class ChartValues:
    """All of them. `volumes` and `mounts` are those of the models, `workers` go by Deployment."""

    name: str
    image: str
    secret: str
    port: int
    volumes: list[dict[str, Any]]
    mounts: list[dict[str, Any]]
    node_selector: dict[str, str]
    tolerations: list[dict[str, str]]
    gateway: GatewayValues
    workers: dict[str, WorkerValues]


def read_values(path: Path, on_progress: OnProgress) -> ChartValues:
    """The values of a specification; `on_progress` hears which of its keys are not used.

    Raises UsageError if a launch would refuse it, or if pods cannot do what it asks for.
    """
    file = load(path)
    if (keys := file.kubernetes) is None:
        raise UsageError(f"--spec {path}: the key kubernetes is missing, with an image at least")
    spec = _checked(path, file)
    _say_unused(file, spec, on_progress)
    return _values(file, keys, spec)


def _checked(path: Path, file: SpecFile) -> ClusterSpec:
    given = _given(file)
    if refused := [f"{key}: {reason}" for key, reason in _REFUSED.items() if key in given]:
        raise UsageError(f"--spec {path}: not on Kubernetes: {'; '.join(refused)}")
    spec = check_flags(parse_args(["--spec", str(path)]))
    if spec.port == 0:
        raise UsageError(f"--spec {path}: port is 0, and a Service needs a number")
    return spec


def _given(file: SpecFile) -> list[str]:
    """The keys that say something."""
    values = msgspec.structs.asdict(file)
    return [key for key, value in values.items() if value is not None and value is not False]


def _say_unused(file: SpecFile, spec: ClusterSpec, on_progress: OnProgress) -> None:
    given = _given(file)
    unused: list[str] = [key for key in _OF_A_MACHINE if key in given]
    for name, resources in spec.resources.items():
        unused += [f"{key} of {name}" for key in ("gpus", "mem") if getattr(resources, key)]
    if unused:
        on_progress(f"not used, as each pod has its own: {', '.join(unused)}")


def _values(file: SpecFile, keys: KubernetesKeys, spec: ClusterSpec) -> ChartValues:
    drain_s = _GATEWAY_DRAIN_S if file.drain is None else file.drain
    # A worker itself gives up before, and says why: on GPUs once its log has been silent so long.
    start_s = min(max(_START_S, 2 * spec.ready_timeout_s), _LONGEST_START_S)
    names = [f"models-{number}" for number in range(len(keys.volumes))]
    return ChartValues(
        name=keys.name,
        image=keys.image,
        secret=keys.secret,
        port=spec.port,
        volumes=[
            {"name": name, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
            for name, claim in zip(names, keys.volumes.values(), strict=True)
        ],
        mounts=[
            {"name": name, "mountPath": mount, "readOnly": True}
            for name, mount in zip(names, keys.volumes, strict=True)
        ],
        node_selector=keys.node_selector,
        tolerations=[
            {key: value for key, value in msgspec.structs.asdict(one).items() if value is not None}
            for one in keys.tolerations
        ],
        gateway=GatewayValues(
            spec=_gateway_spec(file, drain_s),
            resources=_resources(keys.resources.gateway),
            start_probes=int(start_s / PROBE_S),
            stop_seconds=UNROUTE_S + int(drain_s) + _STOP_S,
        ),
        workers={
            pods.name: WorkerValues(
                replicas=pods.replicas,
                args=[_literal(word) for word in (*pods.args, *_common(spec), *pods.engine_args)],
                resources=_worker_resources(keys, pods),
                start_probes=int(start_s / PROBE_S),
                # Its requests have as long to end as it takes to end the rest by force.
                stop_seconds=2 * int(DRAIN_S) + _STOP_S,
            )
            for pods in worker_pods(spec, keys)
        },
    )


def _gateway_spec(file: SpecFile, drain_s: float) -> str:
    given = {key: value for key in _FOR_GATEWAY if (value := getattr(file, key)) is not None}
    if "prefill" in given and not isinstance(given["prefill"], str):
        given["prefill"] = given["prefill"].model
    fixed = {
        "gateway_only": True,
        "host": "0.0.0.0",
        "port": GATEWAY_PORT,
        "api_keys": f"{KEYS}/keys.txt",
        "cluster_key_file": f"{KEYS}/cluster.key",
        "log_dir": LOGS,
        "max_restarts": 0,
        "drain": drain_s,
    }
    text: str = yaml.safe_dump(msgspec.to_builtins(given | fixed, enc_hook=str), sort_keys=False)
    return text


def _common(spec: ClusterSpec) -> Sequence[str]:
    """The flags that all workers have."""
    words = ["--ready-timeout", f"{spec.ready_timeout_s:g}", "--log-format", spec.log_format.value]
    for folder in spec.model_roots:
        words += ["--model-root", str(folder)]
    for flag, value in (
        ("--transfer-backend", spec.transfer_backend),
        ("--otlp-endpoint", spec.otlp_endpoint),
    ):
        words += [] if value is None else [flag, value]
    for flag, given in (
        ("--allow-unverified", spec.allow_unverified),
        ("--allow-unsafe", spec.allow_unsafe),
    ):
        words += [flag] if given else []
    return words


def _literal(word: str) -> str:
    """A word of which the kubelet leaves everything as it is."""
    return word.replace("$(", "$$(")


def _worker_resources(keys: KubernetesKeys, pods: WorkerPods) -> dict[str, Any]:
    asked = keys.resources.prefill if pods.is_prefill else keys.resources.decode
    return _resources(asked, {} if keys.gpu is None else {keys.gpu: str(pods.gpus)})


def _resources(asked: PodResources, gpus: dict[str, str] | None = None) -> dict[str, Any]:
    """More CPU than asked for may be used; memory and GPUs are a limit, too."""
    memory = {} if asked.memory is None else {"memory": str(asked.memory)}
    cpu = {} if asked.cpu is None else {"cpu": str(asked.cpu)}
    return {"requests": cpu | memory, "limits": memory | (gpus or {})}
