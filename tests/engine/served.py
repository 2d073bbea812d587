"""What the fixtures of engine tests hand out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ps_sglang.launch import Cluster


@dataclass(frozen=True)
class Models:
    """A base and its decoders, one of which (`twin`) has the base's own weights."""

    base: Path
    decoders: dict[str, Path]


@dataclass(frozen=True)
class Served:
    """A running cluster with its models."""

    cluster: Cluster
    models: Models


Launch = Callable[..., Served]
