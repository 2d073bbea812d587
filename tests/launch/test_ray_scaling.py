"""How many workers a decoder on Ray has, by its requests and with hysteresis."""

from __future__ import annotations

from ps_sglang.launch.ray.keys import ScalingKeys
from ps_sglang.launch.ray.scaling import ReplicaBounds, Scaler

RULE = ScalingKeys(target_requests=10, up_after=5, down_after=60)


def scaler(least: int = 1, most: int = 4) -> Scaler:
    return Scaler(ReplicaBounds(least, most), RULE)


def test_a_queue_that_lasts_brings_all_workers_that_it_needs() -> None:
    one = scaler()
    assert one.wanted(31, 1, now=0) == 1
    assert one.wanted(31, 1, now=4.9) == 1
    assert one.wanted(31, 1, now=5) == 4


def test_no_more_than_the_bound() -> None:
    one = scaler(most=2)
    one.wanted(1000, 1, now=0)
    assert one.wanted(1000, 1, now=5) == 2
    assert one.wanted(1000, 2, now=500) == 2


def test_a_peak_that_passes_brings_none() -> None:
    one = scaler()
    one.wanted(50, 1, now=0)
    assert one.wanted(3, 1, now=4) == 1
    assert one.wanted(50, 1, now=6) == 1
    assert one.wanted(50, 1, now=10.9) == 1


def test_idle_workers_go_one_by_one_down_to_the_bound() -> None:
    one = scaler(least=2)
    one.wanted(0, 4, now=0)
    assert one.wanted(0, 4, now=59) == 4
    assert one.wanted(0, 4, now=60) == 3
    assert one.wanted(0, 3, now=61) == 3
    assert one.wanted(0, 3, now=121) == 2
    assert one.wanted(0, 2, now=1000) == 2


def test_a_load_between_the_two_thresholds_changes_nothing() -> None:
    """Three workers hold 17 to 30 requests: two would be more than 80 % full, or over."""
    for requests in (17, 20, 30):
        one = scaler()
        one.wanted(requests, 3, now=0)
        assert one.wanted(requests, 3, now=1000) == 3


def test_one_busy_moment_keeps_an_idle_worker() -> None:
    one = scaler()
    one.wanted(0, 2, now=0)
    one.wanted(15, 2, now=30)
    assert one.wanted(0, 2, now=60) == 2
    assert one.wanted(0, 2, now=119) == 2
    assert one.wanted(0, 2, now=120) == 1
