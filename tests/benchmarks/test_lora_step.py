"""The cost of adapters in a step: ratios are within a round, and the bar's case is measured."""

from __future__ import annotations

import pytest

from benchmarks.lora_step import BAR_CASE, MERGED, OURS, STOCK, cases, figures
from benchmarks.one_batch import AdapterCosts


def test_ratios_are_within_a_round() -> None:
    """The machine became slower between the rounds; what is compared did not."""
    taken = {BAR_CASE: {MERGED: [0.1, 0.2], OURS: [0.11, 0.22], STOCK: [0.18, 0.4]}}
    cost = AdapterCosts([0.01, 0.03], [0.004], loaded_bytes=4.9e6, slot_bytes=9.8e6)
    found = figures(taken, {OURS: cost})
    by = found["times_merged"][BAR_CASE]
    assert by[OURS] == pytest.approx({"min": 1.1, "median": 1.1, "max": 1.1, "repeats": 2})
    assert by[STOCK] == pytest.approx({"min": 1.8, "median": 1.9, "max": 2.0, "repeats": 2})
    assert found["milliseconds"][BAR_CASE][MERGED]["median"] == pytest.approx(150)
    assert found["adapter"][OURS]["load_milliseconds"]["median"] == pytest.approx(20)
    assert (found["adapter"][OURS]["loaded_mb"], found["adapter"][OURS]["slot_mb"]) == (4.9, 9.8)


def test_the_bar_is_measured() -> None:
    (case,) = [case for case in cases(8) if case.name == BAR_CASE]
    assert (case.forward.requests, case.forward.adapters, case.steps) == (16, 4, 8)
