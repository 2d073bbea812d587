"""A gateway whose clients have keys: two of one tenant, one of another, and an admin."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from ps_sglang.gateway.access import key_file
from ps_sglang.gateway.access.key_file import KeyEntry
from ps_sglang.gateway.access.limits import UNLIMITED
from ps_sglang.gateway.access.principal import KeyRole, Principal
from tests.gateway.gateway_setup import Setup, running

TENANTS: Final = {"alice": "team-a", "anna": "team-a", "eve": "team-b", "ops": "ops"}


def secret(name: str) -> str:
    """The key of a person of these tests."""
    return f"psk-{name}-s3cret"


def add_key(path: Path, name: str, tenant: str | None = None) -> None:
    """Write a person's key; `ops` is an admin."""
    role = KeyRole.ADMIN if name == "ops" else KeyRole.USER
    who = Principal(name, role, tenant or TENANTS[name], UNLIMITED)
    key_file.add(path, KeyEntry(who, key_file.digest_of(secret(name))))


@asynccontextmanager
async def running_with_keys(path: Path, **shape: Any) -> AsyncIterator[Setup]:
    """As `running`, with everybody's key in a file at `path`."""
    for name in TENANTS:
        add_key(path, name)
    async with running(api_keys=str(path), **shape) as setup:
        yield setup


def as_(name: str, **headers: str) -> dict[str, str]:
    """The headers of a person's request."""
    return {"Authorization": f"Bearer {secret(name)}", **headers}


async def ask(
    gateway: Setup, who: str, method: str, path: str, body: Any = None
) -> tuple[int, Any]:
    """Status and JSON of a person's request; None for an answer without a body."""
    async with gateway.http.request(
        method, gateway.url + path, json=body, headers=as_(who)
    ) as response:
        text = await response.text()
        is_json = response.content_type == "application/json"
        return response.status, await response.json() if is_json else text or None
