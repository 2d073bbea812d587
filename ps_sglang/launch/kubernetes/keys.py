"""What a specification says for Kubernetes, under its key `kubernetes`."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

Quantity = int | Annotated[str, msgspec.Meta(pattern=r"^[0-9]+(\.[0-9]+)?(m|[kMGTPE]i?)?$")]
"""As Kubernetes has them: 2, 500m, 16Gi."""
Label = Annotated[str, msgspec.Meta(pattern=r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$")]


class PodResources(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a pod asks for; `memory` is its limit, too. GPUs are counted by `tp`."""

    cpu: Quantity | None = None
    memory: Quantity | None = None


_NOTHING: Final = PodResources()


class PodResourcesByRole(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The resources of each pod of a kind; those of adapters are decoders' pods, too."""

    gateway: PodResources = _NOTHING
    prefill: PodResources = _NOTHING
    decode: PodResources = _NOTHING


class Toleration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A taint of nodes on which workers may run nevertheless."""

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class KubernetesKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What Kubernetes must know beyond a cluster's models.

    `image` was built from `launch/Containerfile`. All objects' names begin with `name`. `secret`
    names the Secret with the keys. `volumes` has claims (PersistentVolumeClaim) by the path at
    which all pods find them, read-only. `adapters` are those decoders that are adapters: their
    folders are not at hand where manifests are written. `gpu` is what the nodes call a GPU; null
    for workers on CPUs. `node_selector` and `tolerations` are those of workers.
    """

    image: str
    name: Label = "ps-sglang"
    secret: str = "ps-sglang"
    volumes: dict[str, str] = {}
    adapters: tuple[str, ...] = ()
    gpu: str | None = "nvidia.com/gpu"
    resources: PodResourcesByRole = PodResourcesByRole()
    node_selector: dict[str, str] = {}
    tolerations: tuple[Toleration, ...] = ()
