"""Which number of an answer counts."""

from __future__ import annotations

from decimal import Decimal

import pytest

from ps_sglang.training.tasks.numbers import final_number


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("3 + 4 = 7\n#### 7", 7),
        ("#### -12", -12),
        ("####1,234 legs", 1234),
        ("#### $5.00", 5),
        ("#### 7\n#### 8\nand 9", 7),
        ("The answer is 18.", 18),
        ("First 3, then 4, so 12", 12),
        ("none at all", None),
        ("####", None),
        ("", None),
    ],
)
def test_the_marked_number_else_the_last(answer: str, number: int | None) -> None:
    assert final_number(answer) == (None if number is None else Decimal(number))
