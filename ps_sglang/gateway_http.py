"""One request to a gateway over HTTP, through the standard library."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import Any

Json = dict[str, Any]


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
    url: str, body: Json | None = None, *, method: str | None = None, timeout_s: float
) -> Json:
    """The JSON answer to a GET, or with a body to a POST; raises the two errors above."""
    data = None if body is None else json.dumps(body).encode()
    try:
        answer: Json = json.loads(_content(url, data, method, timeout_s))
    except ValueError as error:
        raise GatewayUnreachable(str(error)) from error
    return answer


def get_text(url: str, *, timeout_s: float) -> str:
    """The answer to a GET as text; raises the two errors above."""
    return _content(url, None, "GET", timeout_s).decode(errors="replace")


def _content(url: str, data: bytes | None, method: str | None, timeout_s: float) -> bytes:
    try:
        request = urllib.request.Request(
            url, data=data, headers={"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
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
