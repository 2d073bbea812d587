"""Launcher: one base prefill worker, one decode worker per decoder, and the gateway.

`ps-sglang launch --help` for the command line; `Cluster` for Python.
The names are imported on first use, so that the fork server and `--help` stay light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ps_sglang.launch.cluster import Cluster as Cluster
    from ps_sglang.launch.spec import ClusterSpec as ClusterSpec

__all__ = ["Cluster", "ClusterSpec"]

_HOMES: Final = {
    "Cluster": "ps_sglang.launch.cluster",
    "ClusterSpec": "ps_sglang.launch.spec",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
