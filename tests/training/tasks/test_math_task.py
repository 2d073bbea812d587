"""The math task: expressions and herds kept apart, worked answers that add up."""

from __future__ import annotations

import re

import pytest

from ps_sglang.training.tasks import Split, task
from ps_sglang.training.tasks.math import PACKAGE
from tests.training.tasks.task_setup import digest, needs

pytestmark = needs(PACKAGE)

MATH = task("math")
SPLITS: tuple[Split, ...] = ("train", "dev", "test")


def test_no_expression_and_no_herd_is_in_two_splits_or_comes_twice() -> None:
    keys = [item.check["key"] for split in SPLITS for item in MATH.items(split)]
    assert len(keys) == 4_000 + 100 + 200
    assert len(set(keys)) == len(keys)


def test_half_are_sums_whatever_the_count() -> None:
    for split in SPLITS:
        kinds = [item.id.split("-")[0] for item in MATH.items(split)]
        assert kinds == ["chain_sum", "leg_counting"] * (len(kinds) // 2)


def test_the_items_are_the_same_on_every_machine() -> None:
    found = {split: digest(MATH.items(split)) for split in SPLITS}
    assert found == {
        "train": "b74611dadb7e208d",
        "dev": "93ffeb373fc8e618",
        "test": "1952884b84bb4c65",
    }


def test_every_step_of_a_worked_answer_is_true_and_leads_to_the_number() -> None:
    steps = re.compile(r"(-?\d+) ([-+*]) (\d+) = (-?\d+)")
    for item in MATH.items("train"):
        found = steps.findall(item.answer)
        for left, operator, right, result in found:
            a, b = int(left), int(right)
            assert {"+": a + b, "-": a - b, "*": a * b}[operator] == int(result)
        assert int(found[-1][3]) == item.check["number"]
        assert item.answer.endswith(f"\n#### {item.check['number']}")


@pytest.mark.parametrize("split", SPLITS)
def test_gold_answers_pass_and_wrong_ones_fail(split: Split) -> None:
    items = MATH.items(split)
    assert MATH.passed(items, [item.answer for item in items]) == [True] * len(items)
    off_by_one = [f"#### {item.check['number'] + 1}" for item in items]
    assert MATH.passed(items, off_by_one) == [False] * len(items)
    assert MATH.passed(items, ["junk"] * len(items)) == [False] * len(items)
