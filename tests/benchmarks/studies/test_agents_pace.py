"""What the agents benchmark says of the time that is left, of pools, and of step costs."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from benchmarks.sessions.counters import Pool
from benchmarks.sessions.drive import Load
from benchmarks.sessions.pace import Pace
from benchmarks.sessions.pools import used, watched
from benchmarks.studies.agents.fit import fit, misses

AT_ONCE, SLOW, FAST = Load(), Load(rate=0.5), Load(rate=100.0)
LOADS = [AT_ONCE, SLOW, FAST]


def test_what_is_left_is_what_the_same_took_or_what_arrivals_and_capacity_allow() -> None:
    pace = Pace(["a", "b", "a"], 10)
    pace.started(20.0)
    pace.took("a", AT_ONCE, 5.0, 2.0)
    # Ten sessions at 0.5 a second take 20 s, and more than 2 a second take 5; b is like a.
    here, other, again = 20 + 5, 20 + (5 + 20 + 5), 20 + (5 + 20 + 5)
    assert pace.left("a", LOADS[1:], LOADS) == pytest.approx(here + other + again)
    pace.took("a", SLOW, 30.0, 0.4)
    assert pace.left("a", LOADS[2:], LOADS) == pytest.approx(5 + other + 20 + (5 + 30 + 5))
    pace.started(40.0)
    pace.took("b", AT_ONCE, 10.0, 1.0)
    # A start takes 30 s in the mean by now; b does one session a second.
    assert pace.left("b", LOADS[1:], LOADS) == pytest.approx(20 + 10 + 30 + (5 + 30 + 5))


def test_measuring_step_costs_counts_as_often_as_it_is_still_to_be_done() -> None:
    pace = Pace(["a", "a"], 10, step_costs=2)
    pace.step_costs_took(100.0)
    pace.started(20.0)
    pace.took("a", AT_ONCE, 5.0, 2.0)
    assert pace.left("a", [], [AT_ONCE]) == pytest.approx(20 + 5 + 100)
    pace.step_costs_took(100.0)
    assert pace.left("a", [], [AT_ONCE]) == pytest.approx(20 + 5)


async def test_pools_are_looked_at_once_more_at_the_end() -> None:
    looks = itertools.count(1)
    async with watched(lambda: {"prefill": Pool(next(looks), 10)}) as samples:
        await asyncio.sleep(0)
    assert list(samples) == [{"prefill": Pool(1, 10)}]


async def test_a_worker_that_is_gone_when_it_is_looked_at_is_told() -> None:
    def look() -> dict[str, Pool]:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        async with watched(look):
            pass


def test_pool_use_is_a_part_of_its_roles_room() -> None:
    samples = [{"decode": Pool(held, 200), "prefill": Pool(7, 7)} for held in (20, 100, 60)]
    assert used(samples) == {
        "decode": {"capacity": 200, "held": 60, "peak": 0.5, "mean": pytest.approx(0.3)},
        "prefill": {"capacity": 7, "held": 7, "peak": 1.0, "mean": 1.0},
    }


def test_a_fit_finds_costs_that_are_linear() -> None:
    samples = [
        ({"steps": 1.0, "tokens": new, "pairs": new * held}, 0.01 + 0.002 * new + 1e-6 * new * held)
        for new in (1, 10, 100)
        for held in (0, 50, 1000)
    ]
    costs = fit(samples)
    assert costs == pytest.approx({"steps": 0.01, "tokens": 0.002, "pairs": 1e-6})
    assert misses(samples, costs)["most"] == pytest.approx(0, abs=1e-9)


def test_no_cost_is_below_zero() -> None:
    samples = [({"steps": 1.0, "tokens": n}, 1.0 - 0.05 * n) for n in (1.0, 2.0, 3.0)]
    costs = fit(samples)
    assert costs["tokens"] == 0
    assert costs["steps"] == pytest.approx(0.9, abs=0.02)
    assert misses(samples, {"steps": 0.95, "tokens": 0.0}) == pytest.approx(
        {"median": 0.05 / 0.9, "most": 0.1 / 0.85}
    )
