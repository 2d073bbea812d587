"""One request to a gateway over HTTP, through the standard library."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

Json = dict[str, Any]

KEY_VARIABLE: Final = "PS_SGLANG_API_KEY"
"""Where commands find the key that they show to a gateway."""


@dataclass(frozen=True)
class Credentials:
    """The key to show, and the certificate by which the gateway is known, if it is at hand.

    Without that one the certificates are good which this system trusts.
    """

    api_key: str | None
    certificate: Path | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The headers that show the key."""
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}

    def tls(self) -> ssl.SSLContext | None:
        """How connections are checked, None for the usual way; raises OSError."""
        if self.certificate is None:
            return None
        context = ssl.create_default_context(cafile=self.certificate)
        # It is this very one, whoever has issued it and whatever address it is for.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.check_hostname = False
        return context


def from_environment() -> Credentials:
    """Those of commands: the key in $PS_SGLANG_API_KEY."""
    return Credentials(os.environ.get(KEY_VARIABLE) or None)


class GatewayRefused(Exception):
    """The gateway answered with an error. `is_explained`: `reason` is the error's own message.

    `code` is the error's own, if it has one.
    """

    def __init__(self, status: int, content: bytes) -> None:
        self.code: str | None = None
        try:
            error = json.loads(content)["error"]
            self.reason = str(error["message"])
            self.code = error.get("code")
            self.is_explained = True
        except (ValueError, KeyError, TypeError):
            self.reason = content.decode(errors="replace").strip()
            self.is_explained = False
        super().__init__(f"status {status}: {self.reason}")
        self.status = status


class GatewayUnreachable(Exception):
    """No answer came, or one that is no JSON; or the address is none."""


def call(
    url: str,
    body: Json | None = None,
    *,
    method: str | None = None,
    timeout_s: float,
    credentials: Credentials | None = None,
) -> Json:
    """The JSON answer to a GET, or with a body to a POST; raises the two errors above.

    Without `credentials` it shows those of the environment.
    """
    data = None if body is None else json.dumps(body).encode()
    content = _content(url, data, method, timeout_s, credentials)
    try:
        answer: Json = json.loads(content)
    except ValueError as error:
        raise GatewayUnreachable(str(error)) from error
    return answer


def get_text(url: str, *, timeout_s: float) -> str:
    """The answer to a GET as text; raises the two errors above."""
    return _content(url, None, "GET", timeout_s, None).decode(errors="replace")


def _content(
    url: str,
    data: bytes | None,
    method: str | None,
    timeout_s: float,
    credentials: Credentials | None,
) -> bytes:
    credentials = credentials or from_environment()
    try:
        request = urllib.request.Request(
            url,
            data=data,
            headers={"Content-Type": "application/json", **credentials.headers},
            method=method,
        )
        with urllib.request.urlopen(
            request, timeout=timeout_s, context=credentials.tls()
        ) as response:
            content: bytes = response.read()
            return content
    except urllib.error.HTTPError as error:
        raise GatewayRefused(error.code, error.read()) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise GatewayUnreachable(str(error)) from error


def no_gateway(url: str, error: Exception) -> str:
    """What to tell a user whose gateway does not answer."""
    return (
        f"no ps_sglang gateway answers at {url} ({error}); "
        "is the cluster running, and is this the address of its ready line?"
    )
