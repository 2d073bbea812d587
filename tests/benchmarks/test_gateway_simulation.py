"""The product's router on a small agent trace, without processes and by a clock that jumps."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gateway import trace
from benchmarks.gateway.simulation import play, simulated
from benchmarks.gateway.vocabulary import write_tokenizer

SHAPE = trace.Shape(slots=24, sessions=48, turns_median=12, turns_most=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("simulation")
    write_tokenizer(made)
    return made


def played(folder: Path, name: str, pool: float, seed: int) -> dict[str, float]:
    size = round(pool * trace.working_set(SHAPE) / 2)
    return simulated(play(folder, name, 2, size, SHAPE, seed))


def test_work_is_even_and_hits_are_the_oracles(folder: Path) -> None:
    """Where one copy of the conversations fits, and just a little more."""
    runs = [
        (played(folder, "gateway", 1.25, seed), played(folder, "balanced", 1.25, seed))
        for seed in (31, 32)
    ]
    for ours, oracle in runs:
        assert ours["hit_percent"] > oracle["hit_percent"] - 3
        assert ours["imbalance"] < 1.2


def test_a_simulation_comes_out_the_same_each_time(folder: Path) -> None:
    first, second = (played(folder, "gateway", 1.0, 31) for _ in range(2))
    assert first == second
