"""Cluster specifications in YAML, for `--spec FILE`; the command line's flags win over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ps_sglang.errors import UsageError
from ps_sglang.gateway.config import LogFormat
from ps_sglang.launch.kubernetes.keys import KubernetesKeys
from ps_sglang.launch.resources import Resources
from ps_sglang.launch.spec import Entry
from ps_sglang.launch.unknown_keys import unknown_keys


class AdapterKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What each worker of adapters gets of the GPUs."""

    tp: int | None = None
    gpus: tuple[int, ...] | None = None
    mem: str | None = None


class WorkerKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model and its workers, for `prefill` and for each of `decoders`."""

    model: str
    replicas: int | None = None
    tp: int | None = None
    gpus: tuple[int, ...] | None = None
    mem: str | None = None
    engine_args: tuple[str, ...] = ()


class SpecFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys of a specification; each is the command line's flag of that name.

    `prefill` and `decoders` may say more of their workers, and `adapters` of those of adapters.
    `kubernetes` is for `ps-sglang manifest`; a launch does not look at it.
    """

    prefill: str | WorkerKeys | None = None
    decoders: tuple[str | WorkerKeys, ...] | None = None
    adapters: AdapterKeys | None = None
    gpus: str | None = None
    prefill_replicas: int | None = None
    decode_replicas: int | None = None
    gateway_only: bool | None = None
    one_worker: bool | None = None
    join: str | None = None
    host: str | None = None
    port: int | None = None
    gateway_processes: int | None = None
    cors_origins: tuple[str, ...] | None = None
    admin_host: str | None = None
    admin_port: int | None = None
    cluster_key_file: Path | None = None
    model_roots: tuple[Path, ...] | None = None
    allow_unsafe: bool | None = None
    max_concurrent_requests: int | None = None
    max_queued_requests: int | None = None
    max_queued_tokens: int | None = None
    request_timeout: float | None = None
    max_sessions: int | None = None
    api_keys: Path | None = None
    no_keys: bool | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    drain: float | None = None
    transfer_backend: str | None = None
    advertise: str | None = None
    max_restarts: int | None = None
    allow_unverified: bool | None = None
    log_dir: Path | None = None
    log_format: LogFormat | None = None
    otlp_endpoint: str | None = None
    ready_timeout: float | None = None
    engine_args: tuple[str, ...] | None = None
    prefill_engine_args: tuple[str, ...] | None = None
    decode_engine_args: tuple[str, ...] | None = None
    kubernetes: KubernetesKeys | None = None


def load(path: Path) -> SpecFile:
    """A specification, as it is written.

    Raises UsageError if the file cannot be read, is no YAML, or has a key or value of another kind.
    """
    try:
        content = msgspec.yaml.decode(path.read_bytes())
        if problems := list(unknown_keys(content, SpecFile)):
            raise UsageError(f"--spec {path}: {'; '.join(problems)}")
        return msgspec.convert(content, SpecFile, dec_hook=_decode)
    except OSError as error:
        raise UsageError(f"--spec {path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise UsageError(f"--spec {path}: {error}") from error


def read_spec(path: Path) -> dict[str, Any]:
    """What a specification sets of a ClusterSpec; raises UsageError, see `load`."""
    given = msgspec.structs.asdict(load(path))
    del given["kubernetes"]
    return _expanded({key: value for key, value in given.items() if value is not None}, path)


def _expanded(given: dict[str, Any], path: Path) -> dict[str, Any]:
    """With the keys of workers as ClusterSpec has them; raises UsageError for one given twice."""
    if isinstance(prefill := given.get("prefill"), WorkerKeys):
        given |= {"prefill": prefill.model, "prefill_resources": _resources(prefill)}
        more = {
            "prefill_replicas": prefill.replicas,
            "prefill_engine_args": prefill.engine_args or None,
        }
        for key, value in more.items():
            if value is not None and key in given:
                raise UsageError(f"--spec {path}: {key} is given beside prefill, which has it, too")
            if value is not None:
                given[key] = value
    if "decoders" in given:
        given["decoders"] = tuple(
            one if isinstance(one, str) else _entry(one, path) for one in given["decoders"]
        )
    if "adapters" in given:
        given["adapter_resources"] = _resources(given.pop("adapters"))
    return given


def _entry(keys: WorkerKeys, path: Path) -> Entry:
    entry = Entry.parse(keys.model)
    if entry.replicas is not None and keys.replicas is not None:
        raise UsageError(f"--spec {path}: decoder {keys.model} has its replicas twice")
    replicas = entry.replicas if keys.replicas is None else keys.replicas
    return Entry(entry.model, replicas, _resources(keys), keys.engine_args)


def _resources(keys: WorkerKeys | AdapterKeys) -> Resources:
    return Resources(keys.tp, keys.gpus, keys.mem)


def _decode(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value).expanduser()
    # msgspec adds the place; Path is the only kind that is not its own.
    raise ValueError(f"Expected a {kind.__name__.lower()}, got {value!r}")
