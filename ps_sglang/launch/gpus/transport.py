"""How pages get from prefill to decode workers, and what must be installed for it.

Read in SGLang 0.5.23 and in the documentation of Mooncake and UCX; nothing here has run on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from ps_sglang.launch.gpus.machine import Machine

DEFAULT_BACKEND: Final = "mooncake"
PACKAGES: Final = {  # what is imported, what is installed, for the CUDA 13 that SGLang brings
    "mooncake": ("mooncake", "mooncake-transfer-engine-cuda13"),
    "nixl": ("nixl", "nixl[cu13]"),
}
_INTRA_NODE: Final = {
    "SGLANG_MOONCAKE_CUSTOM_MEM_POOL": "INTRA_NODE_NVLINK",
    "MC_INTRANODE_NVLINK": "1",
}
_CHOSEN_BY_USER: Final = (*_INTRA_NODE, "MC_FORCE_TCP", "MOONCAKE_PROTOCOL")
_TCP: Final = "TCP through the hosts' memory"


@dataclass(frozen=True)
class Transport:
    """The way of pages from any prefill worker to any decode worker of a launch.

    `environment` is what makes the backend take it. `peer` says how two GPUs of one host reach each
    other, empty if pages go another way. `warning` says why it is slow, or what is not known.
    """

    backend: str
    name: str
    peer: str = ""
    environment: Mapping[str, str] | None = None
    warning: str | None = None

    def between(self, source: tuple[int, ...], target: tuple[int, ...]) -> str:
        """The way between workers on these GPUs of one host."""
        if not self.peer:
            return self.name
        return f"{self.name} {'on the same GPU' if source == target else self.peer}"


def backend_problems(backend: str, *, dry_run: bool) -> list[str]:
    """What is missing for a backend; a dry run needs no package."""
    if backend == "zmq":
        return ["--transfer-backend zmq moves pages of the CPU only; choose mooncake or nixl"]
    if dry_run or not (command := _missing(backend)):
        return []
    return [f"--transfer-backend {backend} needs a package: {command}"]


def package_hint(backend: str) -> str | None:
    """What a dry run says of a package that the launch will need."""
    command = _missing(backend)
    return command and f"before the launch: {command}"


def choose_transport(
    backend: str, machine: Machine, environ: Mapping[str, str], *, one_host: bool
) -> Transport:
    """The best way that is there: CUDA IPC on one host, RDMA, TCP.

    `one_host`: no worker of the cluster is on another machine.
    """
    if backend == "mooncake" and (own := [name for name in _CHOSEN_BY_USER if name in environ]):
        settings = ", ".join(f"{name}={environ[name]}" for name in own)
        return Transport(backend, f"as {settings} says")
    if one_host and backend == "mooncake":
        return Transport(backend, "CUDA IPC", _peer(machine), _INTRA_NODE)
    if one_host:
        return Transport(
            backend,
            "CUDA IPC",
            _peer(machine),
            warning="UCX chooses the way itself: UCX_LOG_LEVEL=info shows if it is cuda_ipc",
        )
    if machine.infiniband:
        return Transport(backend, "RDMA")
    if machine.infiniband is None:
        return Transport(
            backend, "RDMA or TCP", warning=f"without InfiniBand pages go by {_TCP}, which is slow"
        )
    return Transport(
        backend,
        _TCP,
        warning=f"no InfiniBand device is here: pages go by {_TCP}, which is slow",
    )


def _missing(backend: str) -> str | None:
    """The command that installs a backend's package, None if it is there."""
    module, package = PACKAGES[backend]
    return None if find_spec(module) else f"pip install '{package}'"


def _peer(machine: Machine) -> str:
    links = {gpu.nvlink for gpu in machine.gpus}
    if links == {True}:
        return "over NVLink"
    return "over NVLink or PCIe" if links & {True, None} else "over PCIe"
