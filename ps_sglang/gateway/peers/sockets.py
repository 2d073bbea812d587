"""Where gateway processes find each other, in a folder that is their user's alone."""

from __future__ import annotations

from pathlib import Path


def socket_of(folder: Path, process: int) -> Path:
    """Where a process hears the others."""
    return folder / f"gateway-{process}.peer"


def owner_socket_of(folder: Path) -> Path:
    """Where the owner serves the requests that others pass on to it."""
    return folder / "owner.http"
