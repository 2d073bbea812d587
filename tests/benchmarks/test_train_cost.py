"""The trainer's cost: all ways train on the same, and missed bars are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.train_cost import (
    CONDITIONED,
    FULL,
    KEPT,
    WAYS,
    Cost,
    Lengths,
    figures,
    measure,
    misses,
    training_step,
)

LENGTHS = Lengths(64, 16)


@pytest.fixture
def base(tiny: dict[str, Path]) -> Path:
    return tiny["base"]


def test_every_way_does_the_same_step(base: Path) -> None:
    """Decoder and base are one model at first, so all see one loss; then each has trained."""
    steps = {way: training_step(way, LENGTHS, base, torch.device("cpu")) for way in WAYS}
    first = {way: step() for way, step in steps.items()}
    assert first[CONDITIONED] == pytest.approx(first[FULL], rel=1e-5)
    assert first[KEPT] == pytest.approx(first[FULL], rel=1e-5)
    second = {way: step() for way, step in steps.items()}
    assert all(second[way] < first[way] for way in WAYS)
    assert second[KEPT] == pytest.approx(second[CONDITIONED], rel=1e-5)


def test_a_measurement_has_time_and_memory(base: Path) -> None:
    cost = measure(FULL, LENGTHS, base)
    assert cost.seconds > 0
    assert cost.peak_bytes > 50_000_000


def test_figures_are_parts_of_full_fine_tuning() -> None:
    costs = {
        FULL: [Cost(4.0, 4_000), Cost(4.2, 5_000), Cost(9.0, 4_000)],
        CONDITIONED: [Cost(2.1, 4_000)] * 3,
        KEPT: [Cost(1.0, 3_000), Cost(1.05, 3_000), Cost(8.0, 3_000)],
    }
    found = figures(Lengths(320, 80), costs)
    assert found["time_of_full"] == {CONDITIONED: 0.5, KEPT: 0.25}
    assert found["memory_of_full"] == {CONDITIONED: 0.8, KEPT: 0.6}
    assert misses({"4:1": found}) == []
    slow = {CONDITIONED: 0.56, KEPT: 0.36}
    assert misses({"4:1": {"time_of_full": slow}}) == [
        "bar missed: cache-conditioned takes 0.56x a full fine-tuning step, more than 0.55x",
        "bar missed: kept-kv takes 0.36x a full fine-tuning step, more than 0.35x",
    ]
