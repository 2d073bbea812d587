"""Workers that share cores."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

import msgspec
import pytest

from benchmarks.sessions.workload import Session, Shape, Turn, sessions
from benchmarks.studies.simulate.cores import Cores
from benchmarks.studies.simulate.hardware import Measured
from benchmarks.studies.simulate.simulation import SYSTEMS, Cluster, Simulator
from ps_sglang.errors import UsageError

STEPS = Measured(
    pool_tokens=1_000_000,
    prefill_step=1.0,
    prefill_token=0.0,
    decode_step=1.0,
    decode_request=0.0,
    move_fixed=0.0,
    move_token=0.0,
)


class Jumping:
    """A clock that jumps to what is due next."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def at(self, time: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time, next(self._numbers), act))

    def run(self) -> None:
        while self._due:
            self.now, _, act = heapq.heappop(self._due)
            act()


@pytest.mark.parametrize(
    ("cores", "ends"),
    [
        # Each runs alone.
        (None, {"a": 4.0, "b": 3.0, "c": 7.0}),
        (3, {"a": 4.0, "b": 3.0, "c": 7.0}),
        # One second alone, then two jobs at half speed; b leaves at 5, c comes at 6 as a ends.
        (1, {"a": 6.0, "b": 5.0, "c": 7.0}),
        # From 1 on both run at three quarters.
        (1.5, {"a": 1 + 2 / 0.75 + 1, "b": 1 + 2 / 0.75, "c": 7.0}),
    ],
)
def test_jobs_share_cores_evenly(cores: float | None, ends: dict[str, float]) -> None:
    clock, found = Jumping(), {}
    shared = Cores(clock, cores)

    def begin(name: str, seconds: float) -> None:
        shared.run(seconds, lambda: found.update({name: clock.now}))

    for start, name, seconds in ((0.0, "a", 4.0), (1.0, "b", 2.0), (6.0, "c", 1.0)):
        clock.at(start, lambda name=name, seconds=seconds: begin(name, seconds))  # type: ignore[misc]
    clock.run()
    assert found == pytest.approx(ends)


def test_a_job_may_want_several_cores_or_a_part_of_one() -> None:
    clock, found = Jumping(), {}
    shared = Cores(clock, 2)
    for name, wants in (("a", 2.0), ("b", 1.5), ("c", 0.5)):
        shared.run(3.0, lambda name=name: found.update({name: clock.now}), wants)  # type: ignore[misc]
    clock.run()
    assert found == pytest.approx({"a": 6.0, "b": 6.0, "c": 6.0})
    shared.run(1.0, lambda: found.update({"d": clock.now}), 0.5)
    clock.run()
    assert found["d"] == pytest.approx(7.0)


@pytest.mark.parametrize("cores", [None, 1])
def test_a_job_is_cut_short(cores: float | None) -> None:
    clock, ended = Jumping(), []
    shared = Cores(clock, cores)
    job = shared.run(10.0, lambda: ended.append(clock.now))
    clock.at(2.0, lambda: shared.end_at(job, 3.0))
    clock.run()
    assert ended == [3.0]


def test_prefill_and_decode_of_two_requests_slow_each_other_down() -> None:
    # A request prefills for one second and decodes for four; the second one prefills meanwhile.
    trace = [
        Session(number, start, 0, (Turn(0, 129, 4, 0.0),)) for number, start in ((0, 0), (1, 2))
    ]
    found = {}
    for cores in (None, 2, 1):
        simulator = Simulator(Cluster("shared", 1, 1), msgspec.structs.replace(STEPS, cores=cores))
        simulator.run(trace)
        found[cores] = {one.session.number: one.ended - one.asked for one in simulator.ended}
    # Alone: it joins the step that begins at 3.
    assert found[None] == found[2] == {0: 5.0, 1: 5.0}
    # On one core its prefill and a step take two seconds; then they decode together.
    assert found[1] == {0: 6.0, 1: 6.0}


def test_a_prefill_may_use_all_cores_and_a_decode_step_one() -> None:
    turns = (Turn(0, 129, 4, 0.0),)
    trace = [Session(0, 0.0, 0, turns), Session(1, 2.0, 0, turns)]
    steps = msgspec.structs.replace(STEPS, cores=2, prefill_cores=2)
    simulator = Simulator(Cluster("shared", 1, 1), steps)
    simulator.run(trace)
    # A prefill beside a step: both want three cores of two, so they take 1.5 s.
    assert [one.ended - one.asked for one in simulator.ended] == pytest.approx([5.5, 5.5])


@pytest.mark.parametrize("system", SYSTEMS)
def test_no_more_is_done_than_the_cores_can_do(system: str) -> None:
    trace = sessions(Shape(steps=2), 50.0, 40, 1)
    steps = msgspec.structs.replace(
        STEPS, prefill_step=0.01, prefill_token=1e-5, decode_step=0.01, cores=2, request=0.004
    )
    cluster = Cluster(system, 4, 4)  # type: ignore[arg-type]
    simulator = Simulator(cluster, steps)
    figures = simulator.run(trace)
    busy = sum(worker.busy for domain in simulator._domains for worker in domain.workers())
    busy += 0.004 * figures["requests"]
    # Work-conserving: while sessions queue, both cores are at work nearly all the time.
    assert 0.8 * 2 * figures["seconds"] < busy <= 2 * figures["seconds"] * (1 + 1e-9)
    freely = Simulator(cluster, msgspec.structs.replace(steps, cores=None)).run(trace)
    assert freely["seconds"] < figures["seconds"]


def test_workers_that_burn_some_of_the_cores_leave_the_rest() -> None:
    cluster = Cluster("shared", 2, 1)  # three workers
    idle = msgspec.structs.replace(STEPS, cores=2)
    less = msgspec.structs.replace(STEPS, cores=1.4)
    burned = msgspec.structs.replace(STEPS, cores=2, idle=0.2)
    trace = [Session(name, 0.0, 0, (Turn(name, 129, 5, 0.0),)) for name in range(2)]
    found = []
    for steps in (idle, less, burned):
        simulator = Simulator(cluster, steps)
        simulator.run(trace)
        found.append([one.ended for one in simulator.ended])
    assert found[2] == pytest.approx(found[1])
    assert min(found[1]) > max(found[0])
    with pytest.raises(UsageError, match=r"3 workers .* 70\.0% .* nothing of 2 cores"):
        Simulator(cluster, msgspec.structs.replace(STEPS, cores=2, idle=0.7))
