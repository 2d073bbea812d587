"""Variants of questions: other values and functions, and still the right answer."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from ps_sglang.training.tasks.variants import (
    Words,
    exchanged,
    fixed_values,
    with_other_values,
    with_others,
)

WORDS = Words([("Rain in Oslo?", [{"rain": {"city": "Oslo"}}])])


def other_values(question: str, fixed: set[str] | None = None, **arguments: Any) -> tuple[str, Any]:
    calls = [{"call": arguments}]
    question, became = with_other_values(question, calls, fixed or set(), WORDS, Random(0))
    return question, exchanged(arguments, became)


def test_a_name_becomes_another_that_this_argument_had() -> None:
    assert other_values("Is Rome north of Romeo?", city="Rome") == (
        "Is Oslo north of Romeo?",
        {"city": "Oslo"},
    )


def test_a_name_of_an_argument_that_is_known_from_nowhere_stays() -> None:
    assert other_values("To Rome!", place="Rome") == ("To Rome!", {"place": "Rome"})


@pytest.mark.parametrize("value", [7, -42, 2_500, 12.5, 0.25])
def test_a_number_becomes_one_of_its_kind_wherever_it_is_said(value: float) -> None:
    question, arguments = other_values(f"From {value} on, {value}.", start=value)
    new = arguments["start"]
    assert question == f"From {new} on, {new}."
    assert new != value
    assert type(new) is type(value)
    assert (len(str(new)), new < 0) == (len(str(value)), value < 0)


def test_a_number_keeps_its_commas() -> None:
    question, arguments = other_values("Owes $2,500,000, not 25.", amount=2_500_000)
    assert question == f"Owes ${arguments['amount']:,}, not 25."
    assert arguments["amount"] != 2_500_000


@pytest.mark.parametrize(
    ("question", "value"),
    [
        ("Five days", 5),
        ("Room 15b of 151", 15),
        ("Yes", True),
        ("by 1 person", True),
        ("the red one", "red"),
        ("4 percent", 0.04),
        ("1e-12 units", 1e-12),
    ],
)
def test_what_the_question_does_not_say_as_the_call_does_stays(question: str, value: Any) -> None:
    assert other_values(question, value=value) == (question, {"value": value})


def test_enumerated_and_default_values_stay() -> None:
    functions = [
        {"parameters": {"properties": {"size": {"enum": [12, 16]}, "city": {"default": "Rome"}}}}
    ]
    fixed = fixed_values(functions)
    assert fixed == {"12", "16", "Rome"}
    said = "Size 12 in Rome"
    assert other_values(said, fixed, size=12, city="Rome") == (said, {"size": 12, "city": "Rome"})


def test_a_value_does_not_become_one_that_the_question_says_already() -> None:
    said = "From Rome to Oslo"
    assert other_values(said, city="Rome") == (said, {"city": "Rome"})


def test_values_inside_of_values_are_exchanged_too() -> None:
    question, arguments = other_values("Points 31 and 57", points=[{"x": 31}, {"x": 57}])
    first, second = (point["x"] for point in arguments["points"])
    assert question == f"Points {first} and {second}"
    assert not {first, second} & {31, 57}


def test_functions_get_others_beside_them_and_never_one_of_their_name() -> None:
    own: list[dict[str, Any]] = [{"name": "own", "of": "item"}]
    others = [{"name": name, "of": "others"} for name in ("own", "one", "two", "three")]
    source = Random(0)
    lists = [with_others(own, others, 3, source) for _ in range(200)]
    assert {len(listed) for listed in lists} == {1, 2, 3}
    assert all(own[0] in listed for listed in lists)
    assert all(len({one["name"] for one in listed}) == len(listed) for listed in lists)
    assert {listed.index(own[0]) for listed in lists if len(listed) == 3} == {0, 1, 2}
    assert with_others(own * 4, others, 3, source) == own * 4
