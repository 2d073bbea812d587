"""List pipelines: a question about filtering, mapping and reducing a list, and its Python code."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Final

# A step is told in words and written as an expression; {k} is 1 to 9, {d} is 2 to 9 (2 to 5 for
# the last step).
_FILTERS: Final = (
    ("keep only the even numbers", "x % 2 == 0"),
    ("keep only the odd numbers", "x % 2 != 0"),
    ("keep only the positive numbers", "x > 0"),
    ("keep only the negative numbers", "x < 0"),
    ("keep only the numbers greater than {k}", "x > {k}"),
    ("keep only the numbers less than {k}", "x < {k}"),
    ("keep only the numbers divisible by {d}", "x % {d} == 0"),
    ("drop the numbers equal to {k}", "x != {k}"),
)
_MAPS: Final = (
    ("multiply each number by {d}", "x * {d}"),
    ("add {k} to each number", "x + {k}"),
    ("subtract {k} from each number", "x - {k}"),
    ("square each number", "x * x"),
    ("negate each number", "-x"),
    ("replace each number by its absolute value", "abs(x)"),
    ("take each number modulo {d}", "x % {d}"),
)
_RESULTS: Final = (
    ("return the sum", "sum(xs)"),
    ("return the number of elements", "len(xs)"),
    ("return the list sorted in ascending order", "sorted(xs)"),
    ("return the list sorted in descending order", "sorted(xs, reverse=True)"),
    ("return the list reversed", "xs[::-1]"),
    ("return the list without duplicates, sorted", "sorted(set(xs))"),
    ("return the largest number, or 0 if the list is empty", "max(xs, default=0)"),
    ("return the smallest number, or 0 if the list is empty", "min(xs, default=0)"),
    ("return the first {d} elements", "xs[:{d}]"),
    ("return the last {d} elements", "xs[-{d}:]"),
)
_NAMES: Final = (
    *("process", "transform", "compute", "solve", "reduce_list"),
    *("handle", "summarize", "filter_map", "pipeline", "calc"),
)
_INPUT_LENGTHS: Final = (0, 1, 3, 5, 6, 7, 8, 9)
_DISTINCT_RESULTS: Final = 3


@dataclass(frozen=True)
class Pipeline:
    """A drawn pipeline: its steps in words, the function that does them, inputs with results."""

    steps: tuple[str, ...]
    function: str
    code: str
    inputs: tuple[list[int], ...]
    results: tuple[Any, ...]

    @property
    def question(self) -> str:
        """What is asked, for the code alone."""
        head = f"Write a Python function `{self.function}(xs)` that takes a list of integers `xs`."
        *earlier, last = self.steps
        task = (
            f"First, {'; then '.join(earlier)}. Finally, {last}."
            if earlier
            else f"It should {last}."
        )
        return f"{head} {task} Reply with the code only."

    @property
    def tells_apart(self) -> bool:
        """Whether its results differ enough that no constant answer could pass."""
        return len({repr(result) for result in self.results}) >= _DISTINCT_RESULTS


def draw(source: random.Random) -> Pipeline:
    """A pipeline of one to three steps, with eight inputs."""
    steps, body = [], []
    for _ in range(source.choice((0, 1, 1, 2))):
        words, line = _middle_step(source)
        steps.append(words)
        body.append(line)
    words, expression = source.choice(_RESULTS)
    number = source.randint(2, 5)
    steps.append(words.format(d=number))
    body.append(f"return {expression.format(d=number)}")
    function = source.choice(_NAMES)
    code = "\n    ".join([f"def {function}(xs):", *body])
    inputs = tuple([source.randint(-20, 20) for _ in range(length)] for length in _INPUT_LENGTHS)
    return Pipeline(tuple(steps), function, code, inputs, _results(code, function, inputs))


def _middle_step(source: random.Random) -> tuple[str, str]:
    keeps = source.random() < 0.5
    words, expression = source.choice(_FILTERS if keeps else _MAPS)
    k, d = source.randint(1, 9), source.randint(2, 9)
    expression = expression.format(k=k, d=d)
    line = f"xs = [x for x in xs if {expression}]" if keeps else f"xs = [{expression} for x in xs]"
    return words.format(k=k, d=d), line


def _results(code: str, function: str, inputs: tuple[list[int], ...]) -> tuple[Any, ...]:
    scope: dict[str, Any] = {}
    exec(code, scope)
    return tuple(scope[function](list(xs)) for xs in inputs)
