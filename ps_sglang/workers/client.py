"""The gateway's /workers, through the standard library."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from ps_sglang.errors import UsageError
from ps_sglang.gateway_http import GatewayRefused, GatewayUnreachable, Json, call, no_gateway

READY_STATES: Final = ("good", "trial")
"""States of a worker in `/workers` in which it gets requests."""

# A drained worker finishes its requests first, and a swap reads a whole checkpoint.
_TIMEOUT_S: Final = 3600.0


class RefusedError(UsageError):
    """The gateway refused a change; the message is its reason."""


class WorkersClient:
    """The workers of the gateway at `url`. All methods raise UsageError, at last after `timeout_s`.

    By then a call that changes something may have succeeded, or may yet.
    """

    def __init__(self, url: str, timeout_s: float = _TIMEOUT_S) -> None:
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s

    def list(self) -> list[Json]:
        """Every worker: `name`, `role`, `decoder`, `url`, `state`, `problem`, `load`."""
        answer = self._call("GET", "/workers")
        try:
            workers: list[Json] = answer["workers"]
        except (KeyError, TypeError) as error:  # some other server
            raise UsageError(no_gateway(self._url, error)) from error
        return workers

    def add(self, joining: Json) -> Json:
        """Have a running worker join; `joining` holds its `url` and what else is to be said."""
        return self._call("POST", "/workers", joining)

    def drain(self, name: str) -> Json:
        """Send a worker nothing new."""
        return self._call("POST", f"{_path(name)}/drain")

    def resume(self, name: str) -> Json:
        """Send a drained worker requests again."""
        return self._call("POST", f"{_path(name)}/resume")

    def remove(self, name: str, *, now: bool) -> Json:
        """Returns when the worker has left: with its last request, or `now`."""
        return self._call("DELETE", f"{_path(name)}?now={int(now)}")

    def swap(self, name: str, model_path: str) -> Json:
        """Returns when the worker serves the weights in `model_path`, a folder on its machine."""
        return self._call("POST", f"{_path(name)}/swap", {"model_path": model_path})

    def _call(self, method: str, path: str, body: Json | None = None) -> Json:
        try:
            return call(self._url + path, body, method=method, timeout_s=self._timeout_s)
        except GatewayRefused as error:
            status = "" if error.is_explained else f"status {error.status}: "
            raise RefusedError(status + error.reason) from error
        except GatewayUnreachable as error:
            raise UsageError(no_gateway(self._url, error)) from error


def _path(name: str) -> str:
    return f"/workers/{quote(name, safe='')}"
