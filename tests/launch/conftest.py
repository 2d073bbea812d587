"""Fixtures of the launcher's tests: a marker to find processes by, adapters of the tiny base."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from ps_sglang.models.stand_in import PROJECTIONS, Noise, write_stand_in_adapter
from tests.support.processes import MARK, Marked


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Marked]:
    """Every process started by the test; the test fails if one is left when it ends."""
    mark = uuid4().hex
    monkeypatch.setenv(MARK, mark)
    processes = Marked(mark)
    yield processes
    left = processes.kill_all()
    assert not left, f"still running: {left}"


WriteAdapter = Callable[..., Path]


@pytest.fixture
def write_adapter(tiny: dict[str, Path], tmp_path: Path) -> WriteAdapter:
    """`write_adapter(name, rank, modules)`: an adapter of the tiny base that changes nothing."""

    def write(name: str, rank: int = 4, modules: tuple[str, ...] = PROJECTIONS) -> Path:
        folder = tmp_path / "adapters" / name
        return write_stand_in_adapter(tiny["base"], folder, Noise(0, seed=0), rank, modules)

    return write
