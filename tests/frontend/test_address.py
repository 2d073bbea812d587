"""`by()` as a function on expressions."""

from __future__ import annotations

from typing import Any

import pytest
import sglang as sgl
from sglang.lang.ir import SglExprList

from ps_sglang.frontend import by
from ps_sglang.frontend.address import DecoderOption, unwrap


def addressees(expression: Any) -> list[str | None]:
    if isinstance(expression, SglExprList):
        return [name for part in expression.expr_list for name in addressees(part)]
    if isinstance(expression, sgl.lang.ir.SglGen):
        return [unwrap(expression.sampling_params.dtype)[0]]
    if isinstance(expression, sgl.lang.ir.SglSelect):
        return [unwrap(expression.choices_method)[0]]
    return []


@pytest.mark.parametrize(
    "expression",
    [
        sgl.gen("x"),
        sgl.gen_int("x"),
        sgl.gen_string("x"),
        sgl.select("x", ["yes", "no"]),
        sgl.gen("x", choices=["yes", "no"]),
        sgl.assistant(sgl.gen("x")),
        "text" + sgl.gen("x") + "more text",
    ],
)
def test_every_generation_is_addressed(expression: Any) -> None:
    assert addressees(by("b", expression)) == ["b"]


def test_all_parts_of_a_sum_are_addressed() -> None:
    expression = sgl.gen("x") + " and " + sgl.select("y", ["yes", "no"])
    assert addressees(by("b", expression)) == ["b", "b"]


def test_the_inner_address_holds() -> None:
    expression = by("a", sgl.gen("x")) + sgl.gen("y") + by("c", sgl.select("z", ["yes"]))
    assert addressees(by("b", sgl.assistant(expression))) == ["a", "b", "c"]


def test_the_expression_itself_stays_as_it_was() -> None:
    generation, choice = sgl.gen("x", dtype=int), sgl.select("y", ["yes", "no"])
    by("b", generation + choice)
    assert addressees(generation + choice) == [None, None]
    assert generation.sampling_params.dtype is int


def test_text_needs_no_address() -> None:
    assert by("b", "text") == "text"


def test_other_options_stay() -> None:
    addressed = by("b", sgl.gen("x", max_tokens=7, regex="[a-c]+", dtype=int))
    params = addressed.sampling_params  # type: ignore[union-attr]
    assert (params.max_new_tokens, params.regex) == (7, "[a-c]+")
    assert params.dtype == DecoderOption("b", int)
