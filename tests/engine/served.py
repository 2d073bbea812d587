"""What the fixtures of engine tests hand out, and which kinds of clusters there are."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ps_sglang.errors import ServingEndedError
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
Kind = TypeVar("Kind")


def kinds(always: Sequence[Kind], whole: Sequence[Kind]) -> list[Kind]:
    """Parameters of a fixture that starts clusters, each for all tests of a module.

    `whole` are those that others come close to. They run where PS_SGLANG_WHOLE_MATRIX is 1.
    """
    return [*always, *whole] if os.environ.get("PS_SGLANG_WHOLE_MATRIX") == "1" else [*always]


@contextmanager
def supervised(served: Served) -> Iterator[Served]:
    """In this block what dies is started again; at its end the cluster is stopped."""

    def supervise() -> None:
        with suppress(ServingEndedError):  # how it learns that the cluster was stopped
            served.cluster.wait()

    thread = threading.Thread(target=supervise)
    thread.start()
    try:
        yield served
    finally:
        served.cluster.stop()
        thread.join()
