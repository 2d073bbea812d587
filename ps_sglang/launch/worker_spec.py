"""What one worker finds in the specification of the cluster that it joins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ps_sglang.launch.resources import NO_RESOURCES
from ps_sglang.launch.spec import ClusterSpec, Entry, in_url
from ps_sglang.launch.specfile import read_spec
from ps_sglang.models.resolve import model_name

_OF_WORKERS: Final = (
    "cluster_key_file",
    "model_roots",
    "allow_unsafe",
    "transfer_backend",
    "max_restarts",
    "allow_unverified",
    "log_dir",
    "log_format",
    "otlp_endpoint",
    "ready_timeout",
    "engine_args",
    "prefill_engine_args",
    "decode_engine_args",
)
_RESOURCES: Final = ("prefill_resources", "adapter_resources")
_NO_ADDRESS: Final = ("0.0.0.0", "::")


def worker_options(path: Path, models: Sequence[str]) -> dict[str, Any]:
    """The options of `ps-sglang worker` that a specification sets; raises UsageError.

    Each of `models` that names a decoder of it is that decoder, with what its entry says. `gpus`
    and `advertise` are not taken: they are of the machine of its launch.
    """
    given = read_spec(path)
    found: dict[str, Any] = {key: given[key] for key in _OF_WORKERS if key in given}
    for key in _RESOURCES:
        found[key] = replace(given.get(key, NO_RESOURCES), gpus=None)
    if "prefill" in given:
        found["base"] = given["prefill"]
    if (gateway := _gateway(given)) is not None:
        found["gateway"] = gateway
    entries = {model_name(entry.model): entry for entry in map(_entry, given.get("decoders", ()))}
    if models:
        found["model"] = tuple(_here(entries[one]) if one in entries else one for one in models)
    return found


def _gateway(given: dict[str, Any]) -> str | None:
    """Where workers join, None if the specification leaves it open."""
    if "join" in given:
        return str(given["join"])
    default = ClusterSpec("", ("",))
    host, port = given.get("host", default.host), given.get("port", default.port)
    if "admin_port" in given:
        host, port = given.get("admin_host", host), given["admin_port"]
    if host in _NO_ADDRESS or not port:
        return None
    return f"{'https' if 'tls_cert' in given else 'http'}://{in_url(host)}:{port}"


def _entry(one: str | Entry) -> Entry:
    return Entry.parse(one) if isinstance(one, str) else one


def _here(entry: Entry) -> Entry:
    """A decoder's entry for a single worker on this machine."""
    return replace(entry, replicas=None, resources=replace(entry.resources, gpus=None))
