"""What the fixtures of engine tests hand out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ps_sglang.launch import Cluster


@dataclass(frozen=True)
class Models:
    """A base and its decoders as whole models, which the reference loads.

    One of them (`twin`) has the base's own weights. Where `adapters` has a decoder, it is served as
    that adapter of the base.
    """

    base: Path
    decoders: dict[str, Path]
    adapters: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Served:
    """A running cluster with its models."""

    cluster: Cluster
    models: Models


Launch = Callable[..., Served]
