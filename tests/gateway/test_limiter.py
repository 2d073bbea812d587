"""What the limiter counts, by a clock that the test moves."""

from __future__ import annotations

from typing import Any

import pytest

from ps_sglang.gateway.access.limiter import RequestLimiter, Unfinished
from ps_sglang.gateway.access.limits import KeyLimits
from ps_sglang.gateway.access.principal import ANONYMOUS, KeyRole, Principal
from ps_sglang.gateway.access.rates import Rate, TokenBucket
from ps_sglang.gateway.errors import BadRequest, LimitExceeded
from ps_sglang.gateway.limits import QUEUED_PER_WORKER, GatewayLimits
from tests.gateway.hand_clock import Clock

EMPTY = Unfinished()


def key(name: str = "k", **limits: int) -> Principal:
    return Principal(name, KeyRole.USER, "tenant", KeyLimits(**limits))


def limiter(workers: int = 1, clock: Clock | None = None, **limits: Any) -> RequestLimiter:
    return RequestLimiter(GatewayLimits(**limits), lambda: workers, clock or Clock())


@pytest.mark.parametrize(
    ("limits", "limit"),
    [
        ({"max_concurrent_requests": 3}, "requests at once"),
        ({"max_queued_requests": 3}, "queued requests"),
        ({"max_queued_tokens": 3}, "queued tokens"),
    ],
)
def test_a_limit_of_the_gateway_counts_all_clients(limits: dict[str, Any], limit: str) -> None:
    made = limiter(**limits)
    with made.admit(key("a"), [1]), made.admit(ANONYMOUS, [1]), made.admit(key("b"), [1]):
        with pytest.raises(LimitExceeded, match="This gateway has reached its limit of 3") as one:
            made.admit(key("c"), [1])
        assert one.value.limit == limit
    with made.admit(key("c"), [1, 1, 1]):
        pass
    assert made.total == EMPTY


@pytest.mark.parametrize("name", ["requests_at_once", "queued_tokens"])
def test_a_limit_of_a_key_is_its_own(name: str) -> None:
    made = limiter()
    mine, other = key("mine", **{name: 2}), key("other", **{name: 2})
    with made.admit(mine, [1]), made.admit(mine, [1]), made.admit(other, [1]):
        with pytest.raises(LimitExceeded, match="The key 'mine' has reached its limit of 2"):
            made.admit(mine, [1])
        with made.admit(other, [1]):
            pass
    with made.admit(mine, [1, 1]):
        pass


def test_a_prompt_that_is_prefilled_waits_no_more() -> None:
    made = limiter(max_queued_requests=2, max_concurrent_requests=5)
    with made.admit(ANONYMOUS, [10, 0]) as admission:
        assert made.total == Unfinished(2, 2, 10)
        for _ in range(2):  # of two attempts
            admission.prefilled(0)
        assert made.total == Unfinished(2, 1, 0)
        with made.admit(ANONYMOUS, [7]):
            assert made.total == Unfinished(3, 2, 7)
    # What follows in the background, as a prefetch, has no place in it any more.
    admission.prefilled(1)
    assert made.total == EMPTY


def test_a_request_that_fails_counts_no_more() -> None:
    made = limiter()
    with pytest.raises(KeyError), made.admit(key(queued_tokens=5), [5]):
        raise KeyError
    assert made.total == EMPTY
    with made.admit(key(queued_tokens=5), [5]):
        pass


def test_what_could_never_be_admitted_is_no_case_for_trying_again() -> None:
    with pytest.raises(BadRequest, match=r"needs 3 requests at once.* the key 'k' has at most 2"):
        limiter().admit(key(requests_at_once=2), [1, 0, 0])
    with pytest.raises(BadRequest, match=r"needs 9 queued tokens.* this gateway has at most 8"):
        limiter(max_queued_tokens=8).admit(ANONYMOUS, [9])


def test_the_queue_is_as_long_as_the_cluster_is_large() -> None:
    made = limiter(workers=3)
    with made.admit(ANONYMOUS, [1] * 3 * QUEUED_PER_WORKER), pytest.raises(LimitExceeded):
        made.admit(ANONYMOUS, [1])


def test_a_quiet_key_may_send_all_its_requests_at_once(clock: Clock) -> None:
    made, two = limiter(clock=clock), key(requests_per_minute=2)

    def rate(principal: Principal = two) -> tuple[int, float, float]:
        """What remains, the seconds until all may come again, and until this request may."""
        found = made.rate(principal)
        assert found is not None
        assert found.limit == 2
        return found.remaining, round(found.full_in, 6), round(found.wait, 6)

    assert [rate(), rate(), rate()] == [(1, 30, 0), (0, 60, 0), (0, 60, 30)]
    assert rate(key("other", requests_per_minute=2)) == (1, 30, 0)
    clock.now += 29
    assert rate() == (0, 31, 1)
    clock.now += 1  # the refused ones do not count
    assert rate() == (0, 60, 0)
    clock.now += 3600
    assert rate() == (1, 30, 0)
    assert made.rate(ANONYMOUS) is None


@pytest.mark.parametrize("per_minute", [1, 3, 7, 59, 1000])
def test_who_waits_as_told_is_served(clock: Clock, per_minute: int) -> None:
    bucket = TokenBucket()
    for _ in range(per_minute):
        assert not bucket.take(per_minute, clock()).wait
    for _ in range(20):
        clock.now += bucket.take(per_minute, clock()).wait
        assert not bucket.take(per_minute, clock()).wait


def test_a_rate_that_was_changed_holds_at_once(clock: Clock) -> None:
    bucket = TokenBucket()
    for _ in range(10):
        bucket.take(10, clock())
    assert bucket.take(10, clock()).wait
    assert not bucket.take(20, clock()).wait
    assert bucket.take(5, clock()).wait


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.1204, "121ms"), (1, "1s"), (7.5, "7.5s"), (60, "1m0s"), (359.2, "6m0s")],
)
def test_a_rate_is_told_as_openai_does(seconds: float, text: str) -> None:
    assert Rate(9, 4, seconds, 0).openai_headers() == {
        "x-ratelimit-limit-requests": "9",
        "x-ratelimit-remaining-requests": "4",
        "x-ratelimit-reset-requests": text,
    }
