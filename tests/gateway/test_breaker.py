"""The circuit breaker alone, under a clock that the tests move."""

from __future__ import annotations

import pytest

from ps_sglang.gateway.routing.worker_state import BreakerState
from ps_sglang.gateway.workers.breaker import (
    FAILURES,
    JITTER,
    LONGEST_SECONDS,
    MISSES,
    SHORTEST_SECONDS,
    SUCCESSES,
    Breaker,
)
from tests.gateway.hand_clock import Clock


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock, random=lambda: 0.0)


def half_open(breaker: Breaker, clock: Clock) -> None:
    breaker.unreachable("gone")
    clock.now += breaker.seconds_to_retry
    breaker.probe_succeeded()
    assert breaker.state is BreakerState.HALF_OPEN


def test_a_lost_connection_opens_at_once(breaker: Breaker) -> None:
    breaker.unreachable("connection refused")
    assert breaker.state is BreakerState.OPEN
    assert breaker.reason == "connection refused"
    assert breaker.seconds_to_retry == SHORTEST_SECONDS


@pytest.mark.parametrize(
    ("fail", "limit"), [(Breaker.request_failed, FAILURES), (Breaker.probe_missed, MISSES)]
)
def test_uncertain_failures_open_when_they_repeat(
    breaker: Breaker, fail: object, limit: int
) -> None:
    assert callable(fail)
    for _ in range(limit - 1):
        fail(breaker, "odd")
        assert breaker.state is BreakerState.CLOSED
    fail(breaker, "odd")
    assert breaker.state is BreakerState.OPEN


def test_a_success_between_failures_forgives_them(breaker: Breaker) -> None:
    for _ in range(FAILURES):
        breaker.request_failed("odd")
        breaker.request_succeeded()
    for _ in range(MISSES):
        breaker.probe_missed("late")
        breaker.probe_succeeded()
    assert breaker.state is BreakerState.CLOSED


def test_a_probe_does_not_forgive_failed_requests(breaker: Breaker) -> None:
    """A worker may be ready and still fail at everything it is asked."""
    for _ in range(FAILURES):
        breaker.request_failed("odd")
        breaker.probe_succeeded()
    assert breaker.state is not BreakerState.CLOSED


def test_no_probe_helps_before_the_back_off_is_over(breaker: Breaker, clock: Clock) -> None:
    breaker.unreachable("gone")
    clock.now += SHORTEST_SECONDS * 0.9
    breaker.probe_succeeded()
    early = breaker.state
    clock.now += SHORTEST_SECONDS * 0.2
    breaker.probe_succeeded()
    assert (early, breaker.state) == (BreakerState.OPEN, BreakerState.HALF_OPEN)
    assert breaker.seconds_to_retry == 0


def test_an_old_requests_success_does_not_close_an_open_breaker(breaker: Breaker) -> None:
    breaker.unreachable("gone")
    breaker.request_succeeded()
    assert breaker.state is BreakerState.OPEN


def test_a_trials_success_closes(breaker: Breaker, clock: Clock) -> None:
    half_open(breaker, clock)
    breaker.request_succeeded()
    assert (breaker.state, breaker.reason) == (BreakerState.CLOSED, "")


def test_probes_close_what_nobody_tries(breaker: Breaker, clock: Clock) -> None:
    half_open(breaker, clock)
    for _ in range(SUCCESSES - 1):
        breaker.probe_succeeded()
        assert breaker.state is BreakerState.HALF_OPEN
    breaker.probe_succeeded()
    assert breaker.state is BreakerState.CLOSED


@pytest.mark.parametrize(
    "fail", [Breaker.unreachable, Breaker.request_failed, Breaker.probe_missed]
)
def test_one_failure_ends_a_trial(breaker: Breaker, clock: Clock, fail: object) -> None:
    assert callable(fail)
    half_open(breaker, clock)
    fail(breaker, "again")
    assert breaker.state is BreakerState.OPEN
    assert breaker.seconds_to_retry == 2 * SHORTEST_SECONDS


def test_the_back_off_doubles_to_a_limit_and_is_jittered(clock: Clock) -> None:
    breaker = Breaker(clock, random=lambda: 1.0)
    waits = []
    for _ in range(2000):
        breaker.unreachable("gone")
        waits.append(breaker.seconds_to_retry)
        clock.now += breaker.seconds_to_retry
    doubled = [SHORTEST_SECONDS * 2**n * (1 + JITTER) for n in range(5)]
    assert waits[:5] == pytest.approx(doubled)
    assert waits[-1] == pytest.approx(LONGEST_SECONDS * (1 + JITTER))


def test_failures_of_old_requests_do_not_lengthen_the_back_off(
    breaker: Breaker, clock: Clock
) -> None:
    for _ in range(50):
        breaker.unreachable("gone")
    assert breaker.seconds_to_retry == SHORTEST_SECONDS


def test_only_a_request_shortens_the_back_off(breaker: Breaker, clock: Clock) -> None:
    half_open(breaker, clock)
    for _ in range(SUCCESSES):
        breaker.probe_succeeded()
    breaker.unreachable("gone")
    assert breaker.seconds_to_retry == 2 * SHORTEST_SECONDS
    clock.now += breaker.seconds_to_retry
    breaker.probe_succeeded()
    breaker.request_succeeded()
    breaker.unreachable("gone")
    assert breaker.seconds_to_retry == SHORTEST_SECONDS
