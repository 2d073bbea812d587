"""The gateway's /workers."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from ps_sglang.gateway_admin import TIMEOUT_S, GatewayAdmin
from ps_sglang.gateway_http import Credentials, Json

READY_STATES: Final = ("good", "trial")
"""States of a worker in `/workers` in which it gets requests."""


class WorkersClient:
    """The workers of the gateway at `url`; its methods raise what those of GatewayAdmin raise."""

    def __init__(
        self, url: str, timeout_s: float = TIMEOUT_S, credentials: Credentials | None = None
    ) -> None:
        self._gateway = GatewayAdmin(url, timeout_s, credentials)

    def list(self) -> list[Json]:
        """Every worker, as `GET /workers` has it."""
        return self._gateway.list("/workers", "workers")

    def cluster_key(self) -> Json | None:
        """The `id` and the `file` of the key that its workers share, None without one."""
        key: Json | None = self._gateway.call("GET", "/workers").get("cluster_key")
        return key

    def add(self, joining: Json) -> Json:
        """Have a running worker join; `joining` holds its `url` and what else is to be said."""
        return self._gateway.call("POST", "/workers", joining)

    def drain(self, name: str) -> Json:
        """Send a worker nothing new."""
        return self._gateway.call("POST", f"{_path(name)}/drain")

    def resume(self, name: str) -> Json:
        """Send a drained worker requests again."""
        return self._gateway.call("POST", f"{_path(name)}/resume")

    def renew(self, name: str, lease: str) -> Json:
        """Say that a worker is still there, which has the lease of that id."""
        return self._gateway.call("POST", f"{_path(name)}/renew", {"lease": lease})

    def remove(self, name: str, *, now: bool, lease: str = "") -> Json:
        """Returns when the worker has left: with its last request, or `now`.

        With its `lease` it is the worker itself that leaves, which cannot be kept.
        """
        query = f"now={int(now)}" + (f"&lease={quote(lease, safe='')}" if lease else "")
        return self._gateway.call("DELETE", f"{_path(name)}?{query}")

    def swap(self, name: str, model_path: str) -> Json:
        """Returns when the worker serves the weights in `model_path`, a folder on its machine."""
        return self._gateway.call("POST", f"{_path(name)}/swap", {"model_path": model_path})


def _path(name: str) -> str:
    return f"/workers/{quote(name, safe='')}"
