"""What is compared, by name: our gateway, `sglang-router`, the oracle, and no gateway at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.gateway import systems
from benchmarks.gateway.latency import Direct, Target, Through
from benchmarks.gateway.messages import EngineConfig
from benchmarks.gateway.oracle import POLICIES, Oracle

OURS: Final = "gateway"
PEER: Final = "sglang-router"


def engine(folder: Path, name: str, **options: Any) -> EngineConfig:
    """An engine with the benchmark's tokenizer."""
    return EngineConfig(name, str(folder / "tokenizer"), **options)


@contextlib.contextmanager
def running(
    name: str, engines: systems.Fleet, folder: Path
) -> Iterator[tuple[Target, tuple[int, ...]]]:
    """A system by its name, and its processes."""
    if name == "direct":
        yield Direct(engines), ()
    elif name in POLICIES:
        yield Oracle(engines, name), ()
    else:
        start = systems.gateway if name == OURS else systems.routers
        with start(engines, folder) as served:
            yield Through(served), served.pids
