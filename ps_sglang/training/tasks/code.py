"""The task `code`: write a list pipeline as a Python function. Synthetic, made here from a seed.

200 step sequences are held out whole: no item of training or dev has one of them.
"""

from __future__ import annotations

import functools
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from ps_sglang.training.tasks.items import Item, Split, first
from ps_sglang.training.tasks.pipelines import Pipeline, draw
from ps_sglang.training.tasks.python_answer import python_in
from ps_sglang.training.tasks.sandbox import Program, run_all

_SEED: Final = 4
_DRAWS: Final = 20_000
_TRAIN, _DEV, _TEST = 4_000, 100, 200
# Few sequences of one step, many of three: without a bound the short ones would fill the data.
_ITEMS_OF_A_SEQUENCE: Final = 2


class CodeTask:
    """Executed pass@1: an answer passes if its function returns the right value on 8 inputs."""

    name = "code"
    max_new_tokens = 96
    trained = True

    def items(self, split: Split, count: int | None = None) -> list[Item]:
        return first(_splits()[split], count, f"code {split}")

    def passed(self, items: Sequence[Item], answers: Sequence[str]) -> list[bool]:
        programs = [
            Program(
                python_in(answer),
                tuple((item.check["function"], [xs]) for xs in item.check["inputs"]),
            )
            for item, answer in zip(items, answers, strict=True)
        ]
        return [
            values == item.check["results"]
            for item, values in zip(items, run_all(programs), strict=True)
        ]


@functools.cache
def _splits() -> dict[Split, list[Item]]:
    source = random.Random(_SEED)
    sequences: dict[tuple[str, ...], dict[str, Pipeline]] = defaultdict(dict)
    for _ in range(_DRAWS):
        pipeline = draw(source)
        by_question = sequences[pipeline.steps]
        if pipeline.tells_apart and len(by_question) < _ITEMS_OF_A_SEQUENCE:
            by_question.setdefault(pipeline.question, pipeline)
    groups = [
        list(by_question.values()) for _, by_question in sorted(sequences.items()) if by_question
    ]
    source.shuffle(groups)
    test, dev, rest = groups[:_TEST], groups[_TEST : _TEST + _DEV], groups[_TEST + _DEV :]
    train = [pipeline for group in rest for pipeline in group]
    source.shuffle(train)
    return {
        "train": _items("train", train[:_TRAIN]),
        "dev": _items("dev", [group[0] for group in dev]),
        "test": _items("test", [group[0] for group in test]),
    }


def _items(split: Split, pipelines: Sequence[Pipeline]) -> list[Item]:
    return [
        Item(
            id=f"code-{split}-{number}",
            messages=({"role": "user", "content": pipeline.question},),
            answer=pipeline.code,
            check={
                "function": pipeline.function,
                "steps": list(pipeline.steps),
                "inputs": list(pipeline.inputs),
                "results": list(pipeline.results),
            },
        )
        for number, pipeline in enumerate(pipelines)
    ]
