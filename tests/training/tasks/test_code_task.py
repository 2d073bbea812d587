"""The code task: splits that share no step sequence, and scoring by execution."""

from __future__ import annotations

import itertools
import random

from ps_sglang.training.tasks import Item, task
from ps_sglang.training.tasks.code import CodeTask
from ps_sglang.training.tasks.pipelines import draw
from tests.training.tasks.task_setup import digest

CODE = task("code")


def steps(items: list[Item]) -> set[tuple[str, ...]]:
    return {tuple(item.check["steps"]) for item in items}


def test_no_step_sequence_of_the_test_items_is_in_training_or_dev() -> None:
    train, dev, test = (steps(CODE.items(split)) for split in ("train", "dev", "test"))
    assert len(test) == 200
    assert len(dev) == 100
    assert not train & test
    assert not train & dev
    assert not dev & test


def test_sizes_and_that_no_question_comes_twice() -> None:
    items = [item for split in ("train", "dev", "test") for item in CODE.items(split)]
    assert len(items) == 4_000 + 100 + 200
    assert len({item.id for item in items}) == len(items)
    assert len({item.messages[0]["content"] for item in items}) == len(items)


def test_the_items_are_the_same_on_every_machine() -> None:
    assert {split: digest(CODE.items(split)) for split in ("train", "dev", "test")} == {
        "train": "936a2948170ecab1",
        "dev": "b31f6128892960fd",
        "test": "53295f51e3179627",
    }


def test_gold_answers_pass_plain_and_fenced() -> None:
    items = CODE.items("dev")
    fenced = [f"```python\n{item.answer}\n```" for item in items]
    assert CODE.passed(items, [item.answer for item in items]) == [True] * len(items)
    assert CODE.passed(items, fenced) == [True] * len(items)


def test_the_answer_of_another_item_fails() -> None:
    items = CODE.items("test", 41)
    renamed = [
        other.answer.replace(other.check["function"], item.check["function"])
        for item, other in itertools.pairwise(items)
    ]
    assert CODE.passed(items[:40], renamed) == [False] * 40


def test_junk_fails() -> None:
    item = CODE.items("test", 1)[0]
    function, results = item.check["function"], item.check["results"]
    junk = [
        "",
        "I cannot help with that.",
        "pass",
        item.answer.replace(f"def {function}", "def other"),
        item.answer.rsplit("\n", 1)[0],
        f"def {function}(xs):\n    return None",
        f"def {function}(xs):\n    return {results[-1]!r}",
        f"print({results!r})",
        f"import sys, os\nos.write(3, b'{{\"values\": {results[:1]!r}}}')\nos._exit(0)",
    ]
    assert CODE.passed([item] * len(junk), junk) == [False] * len(junk)


def test_every_pipeline_is_computed_by_its_own_code() -> None:
    source = random.Random(7)
    for _ in range(200):
        pipeline = draw(source)
        scope: dict[str, object] = {}
        exec(pipeline.code, scope)
        function = scope[pipeline.function]
        assert callable(function)
        assert [function(list(xs)) for xs in pipeline.inputs] == list(pipeline.results)
        assert len(pipeline.inputs) == 8


def test_no_constant_answer_could_pass() -> None:
    for item in CODE.items("test"):
        assert len({str(result) for result in item.check["results"]}) >= 3


def test_a_count_takes_the_first_ones() -> None:
    assert CodeTask().items("train", 7) == CODE.items("train")[:7]
