"""Where gateway processes find each other, in a folder that is their user's alone."""

from __future__ import annotations

from pathlib import Path


def socket_of(folder: Path, process: int) -> Path:
    """Where a process hears the others."""
    return folder / f"gateway-{process}.peer"


def http_socket_of(folder: Path, process: int) -> Path:
    """Where a process serves what others pass on to it, and the launcher's probes."""
    return folder / f"gateway-{process}.http"
