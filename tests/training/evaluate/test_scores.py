"""Wilson's interval against figures of its definition."""

from __future__ import annotations

import math

import pytest

from ps_sglang.training.evaluate.scores import wilson


@pytest.mark.parametrize(
    ("passed", "n", "low", "high"),
    [
        # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_published_intervals(passed: int, n: int, low: float, high: float) -> None:
    assert wilson(passed / n, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [1, 7, 200])
def test_both_ends_lie_where_the_score_is_as_far_as_95_percent_reach(n: int) -> None:
    """The definition: |score - end| is 1.96 standard errors of a rate that were the end."""
    for passed in range(n + 1):
        score = passed / n
        low, high = wilson(score, n)
        assert 0 <= low <= score <= high <= 1
        for end in {low, high} - {0.0, 1.0}:
            error = math.sqrt(end * (1 - end) / n)
            assert abs(score - end) / error == pytest.approx(1.959964, rel=1e-5)
