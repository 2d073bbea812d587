"""The gateway's /decoders."""

from __future__ import annotations

from urllib.parse import quote

from ps_sglang.gateway_admin import GatewayAdmin
from ps_sglang.gateway_http import Json


class DecodersClient:
    """The decoders of the gateway at `url`; its methods raise what those of GatewayAdmin raise."""

    def __init__(self, url: str) -> None:
        self._gateway = GatewayAdmin(url)

    def list(self) -> list[Json]:
        """Every decoder, as `GET /decoders` has it."""
        return self._gateway.list("/decoders", "decoders")

    def add(self, name: str, path: str, *, allow_unverified: bool) -> Json:
        """Returns when all adapter workers serve the adapter in `path`, a folder they see."""
        body = {"name": name, "path": path, "allow_unverified": allow_unverified}
        return self._gateway.call("POST", "/decoders", body)

    def replace(self, name: str, path: str, *, allow_unverified: bool) -> Json:
        """Returns when the adapter in `path` has replaced the one before, and that is unloaded."""
        body = {"path": path, "allow_unverified": allow_unverified}
        return self._gateway.call("PUT", _path(name), body)

    def remove(self, name: str) -> Json:
        """Returns when the decoder is unloaded: with the end of its last request."""
        return self._gateway.call("DELETE", _path(name))


def _path(name: str) -> str:
    return f"/decoders/{quote(name, safe='')}"
