"""The task `math`: short sums and counting legs, drawn by the generators of reasoning-gym.

Half the items are chain_sum (2 or 3 terms of 1 or 2 digits), half leg_counting (3 or 4 kinds of
animals). No expression and no herd of a test or dev item is in training.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from ps_sglang.training.tasks.items import Item, Split, first
from ps_sglang.training.tasks.numbers import FORMAT, final_number
from ps_sglang.training.tasks.packages import import_bare

PACKAGE: Final = "reasoning-gym"
_SEED: Final = 4
# Of each of the two kinds.
_SIZES: Final[dict[Split, int]] = {"test": 100, "dev": 50, "train": 2_000}
_DRAWS: Final = 10_000

# A row of a generator -> what makes it the same as another, and its worked answer.
_Solve = Callable[[Mapping[str, Any]], tuple[str, str]]


class MathTask:
    """An answer passes if its final number is exactly right."""

    name = "math"
    max_new_tokens = 128
    trained = True

    def items(self, split: Split, count: int | None = None) -> list[Item]:
        return first(_splits()[split], count, f"math {split}")

    def passed(self, items: Sequence[Item], answers: Sequence[str]) -> list[bool]:
        return [
            final_number(answer) == item.check["number"]
            for item, answer in zip(items, answers, strict=True)
        ]


@functools.cache
def _splits() -> dict[Split, list[Item]]:
    sums = _generator("chain_sum", min_terms=2, max_terms=3, min_digits=1, max_digits=2)
    legs = _generator("leg_counting", min_animals=3, max_animals=4)
    kinds = [
        _unique("chain_sum", sums, _sum),
        _unique("leg_counting", legs, functools.partial(_legs, _legs_of())),
    ]
    splits: dict[Split, list[Item]] = {}
    for split, size in _SIZES.items():
        halves = [list(itertools.islice(kind, size)) for kind in kinds]
        assert all(len(half) == size for half in halves), f"{_DRAWS} draws are too few"
        splits[split] = [item for pair in zip(*halves, strict=True) for item in pair]
    return splits


def _unique(kind: str, rows: Iterator[Mapping[str, Any]], solve: _Solve) -> Iterator[Item]:
    """The items of a generator, none of them twice."""
    seen = set()
    for row in rows:
        key, answer = solve(row)
        if key in seen:
            continue
        seen.add(key)
        yield Item(
            id=f"{kind}-{row['metadata']['source_index']}",
            messages=({"role": "user", "content": f"{row['question'].strip()}\n{FORMAT}"},),
            answer=f"{answer}\n#### {row['answer']}",
            check={"number": int(row["answer"]), "key": key},
        )


def _sum(row: Mapping[str, Any]) -> tuple[str, str]:
    """One line for each operation, with the sum so far."""
    expression = row["metadata"]["expression"]
    total, *rest = expression.split()
    lines: list[str] = []
    for operator, term in zip(rest[::2], rest[1::2], strict=True):
        so_far = int(total) + int(term) if operator == "+" else int(total) - int(term)
        lines.append(f"{total} {operator} {term} = {so_far}")
        total = str(so_far)
    return expression, "\n".join(lines)


def _legs(legs_of: Mapping[str, int], row: Mapping[str, Any]) -> tuple[str, str]:
    """One line for each kind of animal, with the sum so far."""
    animals: dict[str, int] = row["metadata"]["animals"]
    lines: list[str] = []
    total = 0
    for animal, count in animals.items():
        legs = count * legs_of[animal]
        line = f"{animal}: {count} * {legs_of[animal]} = {legs}"
        lines.append(f"{line}, {total} + {legs} = {total + legs}" if lines else line)
        total += legs
    key = ", ".join(f"{count} {animal}" for animal, count in sorted(animals.items()))
    return key, "\n".join(lines)


def _generator(kind: str, **settings: int) -> Iterator[Mapping[str, Any]]:
    module = _module(kind)
    name = kind.title().replace("_", "")
    config = getattr(module, f"{name}Config")(seed=_SEED, size=_DRAWS, **settings)
    dataset = getattr(module, f"{name}Dataset")(config)
    return (dataset[index] for index in range(_DRAWS))


def _legs_of() -> Mapping[str, int]:
    legs: Mapping[str, int] = _module("leg_counting").ANIMALS
    return legs


@functools.cache
def _module(kind: str) -> Any:
    # Both packages import every other generator, and what those need.
    stubs: dict[str, dict[str, Any]] = {"reasoning_gym": {}, "reasoning_gym.arithmetic": {}}
    return import_bare(PACKAGE, f"reasoning_gym/arithmetic/{kind}.py", stubs)
