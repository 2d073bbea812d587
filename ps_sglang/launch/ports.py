"""Ports for workers, which bind them only after they have loaded their model."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Final

from ps_sglang.errors import LaunchError, UsageError

_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOW: Final = 10_000
_USUAL_EPHEMERAL: Final = 32_768


def free_ports(count: int, but: Collection[int | None] = ()) -> list[int]:
    """`count` distinct ports that nothing listens on, below the ephemeral range; none is in `but`.

    Nobody gets such a port without asking for it by number, so it stays free until the
    worker binds it, except against another program's random choice.
    """
    high = _ephemeral_low()
    ports: list[int] = []
    for port in random.sample(range(_LOW, high), min(high - _LOW, 100 * count)):
        if port not in but and is_free("0.0.0.0", port):
            ports.append(port)
        if len(ports) == count:
            return ports
    raise LaunchError(f"found no {count} free ports between {_LOW} and {high}")


def require_free(host: str, port: int) -> None:
    """Refuse a gateway address that cannot be bound.

    Raises UsageError if the port is taken, or the host is not an address of this machine.
    """
    try:
        _bind(host, port)
    except PermissionError as error:
        raise UsageError(f"port {port} needs privileges; choose one above 1023") from error
    except socket.gaierror as error:
        raise UsageError(f"--host {host}: {error.strerror}") from error
    except OSError as error:
        if is_free("0.0.0.0", port):
            raise UsageError(f"cannot listen on {host}: {error.strerror}") from error
        raise UsageError(
            f"port {port} is in use; stop what listens there or choose another with --port "
            "(0 = any free port)"
        ) from error


def listen_address(advertised: str) -> str:
    """Where to listen for those who ask at `advertised`: there, if it is this machine's own.

    Raises UsageError for a name or address that is none.
    """
    try:
        socket.getaddrinfo(advertised, None)
    except OSError as error:
        raise UsageError(f"--advertise {advertised}: {error}") from error
    if is_free(advertised, 0):
        return advertised
    return "::" if ":" in advertised else "0.0.0.0"  # of a proxy or a service before it


def is_free(host: str, port: int) -> bool:
    """Whether a listener could bind `port` now."""
    try:
        _bind(host, port)
    except OSError:
        return False
    return True


def _bind(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: connections of a past listener in TIME_WAIT are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def _ephemeral_low() -> int:
    try:
        return int(_RANGE.read_text().split()[0])
    except FileNotFoundError:
        return _USUAL_EPHEMERAL
