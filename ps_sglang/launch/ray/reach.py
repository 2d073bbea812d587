"""How the workers of all hosts, and the launcher, reach the gateway."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

from ps_sglang.errors import UsageError
from ps_sglang.gateway.config import is_loopback
from ps_sglang.gateway_http import KEY_VARIABLE, Credentials, from_environment
from ps_sglang.launch.spec import ClusterSpec, in_url
from ps_sglang.workers.client import WorkersClient

_ANSWER_S: Final = 5.0
_ANY: Final = (None, "0.0.0.0", "::")


def refuse_unreachable(spec: ClusterSpec, hosts: Collection[str]) -> None:
    """Refuse a gateway that workers on other `hosts` could not join; raises UsageError."""
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
            f"admin's key: give --api-keys, and that key in ${KEY_VARIABLE}"
        )


def gateway_urls(spec: ClusterSpec, host: str) -> tuple[str, str]:
    """Where a gateway on `host` serves clients, and where admins and workers."""
    scheme = "http" if spec.tls_cert is None else "https"
    here = host if spec.host in _ANY else spec.host
    url = f"{scheme}://{in_url(here)}:{spec.port}"
    if spec.admin_port is None:
        return url, url
    of_admins = here if spec.admin_host in _ANY else str(spec.admin_host)
    return url, f"{scheme}://{in_url(of_admins)}:{spec.admin_port}"


def workers_client(spec: ClusterSpec, admin_url: str) -> WorkersClient:
    """The gateway's workers, asked with the credentials of this command's environment."""
    certificate = spec.tls_cert
    if certificate is not None and not Path(certificate).exists():
        certificate = None  # it is on the gateway's host only
    return WorkersClient(admin_url, _ANSWER_S, Credentials(from_environment().api_key, certificate))


def joining_environment() -> dict[str, str]:
    """What workers show the gateway: what this command shows it."""
    key = from_environment().api_key
    return {} if key is None else {KEY_VARIABLE: key}
