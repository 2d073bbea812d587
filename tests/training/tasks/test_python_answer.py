"""Where the code is in what a model says."""

from __future__ import annotations

import pytest

from ps_sglang.training.tasks.python_answer import python_in

CODE = "def f(xs):\n    return sum(xs)"


@pytest.mark.parametrize(
    "answer",
    [
        CODE,
        f"\n\n{CODE}\n",
        f"```python\n{CODE}\n```",
        f"```\n{CODE}\n```",
        f"```Python\n{CODE}",
        f"Here is the function:\n\n```py\n{CODE}\n```\nIt sums.\n```python\nf([1])\n```",
        f"Here is the function:\n{CODE}",
        f"{CODE}\n\nThis function returns the sum of the list.",
        f"Sure!\n{CODE}\n\nExample:\n>>> f([1])",
        f"{CODE}\n```",
    ],
)
def test_prose_and_fences_are_left_out(answer: str) -> None:
    assert python_in(answer).strip() == CODE


def test_imports_before_a_function_are_kept() -> None:
    code = f"import math\nfrom typing import List\n\n{CODE}"
    assert python_in(f"Use this:\n{code}") == code


@pytest.mark.parametrize("answer", ["", "I do not know.", "def", "\0", "(" * 5_000, "[" * 50_000])
def test_what_holds_no_code_comes_back_as_it_is(answer: str) -> None:
    assert python_in(answer) == answer[:10_000]


def test_odd_escapes_do_not_warn() -> None:
    assert python_in('x = "\\d"\n') == 'x = "\\d"'
