"""How pages get from prefill to decode workers, and what must be installed for it.

Read in SGLang 0.5.23 and in the documentation of Mooncake and UCX; nothing here has run on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ps_sglang.extras import missing
from ps_sglang.launch.gpus.machine import Machine

DEFAULT_BACKEND: Final = "mooncake"
_INTRA_NODE: Final = {
    "mooncake": {
        "SGLANG_MOONCAKE_CUSTOM_MEM_POOL": "INTRA_NODE_NVLINK",
        "MC_INTRANODE_NVLINK": "1",
    },
    # Without a network card, which UCX might prefer; TCP also introduces workers to each other.
    "nixl": {"UCX_TLS": "cuda,sm,self,tcp"},
}
_CHOSEN_BY_USER: Final = {
    "mooncake": (*_INTRA_NODE["mooncake"], "MC_FORCE_TCP", "MOONCAKE_PROTOCOL"),
    "nixl": ("UCX_TLS", "UCX_NET_DEVICES"),
}
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
    if dry_run or not (lacks := missing(backend)):
        return []
    return [f"--transfer-backend {backend} needs {lacks}"]


def package_hint(backend: str) -> str | None:
    """What a dry run says of a package that the launch will need."""
    lacks = missing(backend)
    return lacks and f"the launch will need {lacks}"


def choose_transport(
    backend: str, machine: Machine, environ: Mapping[str, str], *, one_host: bool
) -> Transport:
    """The best way that is there: CUDA IPC on one host, RDMA, TCP.

    `one_host`: no worker of the cluster is on another machine.
    """
    if own := [name for name in _CHOSEN_BY_USER[backend] if name in environ]:
        settings = ", ".join(f"{name}={environ[name]}" for name in own)
        return Transport(backend, f"as {settings} says")
    if one_host:
        warning = None
        if backend == "nixl":
            warning = (
                "UCX takes TCP, which is slow, where it cannot have CUDA IPC: UCX_LOG_LEVEL=info "
                "shows what it takes"
            )
        return Transport(backend, "CUDA IPC", _peer(machine), _INTRA_NODE[backend], warning)
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


def _peer(machine: Machine) -> str:
    links = {gpu.nvlink for gpu in machine.gpus}
    if links == {True}:
        return "over NVLink"
    return "over NVLink or PCIe" if links & {True, None} else "over PCIe"
