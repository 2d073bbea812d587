"""Cluster specifications in YAML, for `--spec FILE`; the command line's flags win over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ps_sglang.errors import UsageError


class SpecFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys of a specification; each is the command line's flag of that name."""

    prefill: str | None = None
    decoders: tuple[str, ...] | None = None
    prefill_replicas: int | None = None
    decode_replicas: int | None = None
    gateway_only: bool | None = None
    one_worker: bool | None = None
    join: str | None = None
    host: str | None = None
    port: int | None = None
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
    transfer_backend: str | None = None
    advertise: str | None = None
    max_restarts: int | None = None
    allow_unverified: bool | None = None
    log_dir: Path | None = None
    ready_timeout: float | None = None
    engine_args: tuple[str, ...] | None = None
    prefill_engine_args: tuple[str, ...] | None = None
    decode_engine_args: tuple[str, ...] | None = None


def read_spec(path: Path) -> dict[str, Any]:
    """The keys that a specification sets.

    Raises UsageError if the file cannot be read, is no YAML, or has a key or value of another kind.
    """
    try:
        spec = msgspec.yaml.decode(path.read_bytes(), type=SpecFile, dec_hook=_decode)
    except OSError as error:
        raise UsageError(f"--spec {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise UsageError(f"--spec {path}: {error}") from error
    return {key: value for key, value in msgspec.structs.asdict(spec).items() if value is not None}


def _decode(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value).expanduser()
    # msgspec adds the place; Path is the only kind that is not its own.
    raise ValueError(f"Expected a {kind.__name__.lower()}, got {value!r}")
