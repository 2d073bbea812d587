"""The task `tools`: call the right function with the right arguments. Made from BFCL's data.

A "BFCL-derived held-out split": no function that a test item calls is called, or only offered, in
a training item, and likewise for dev. Test and dev items are of the categories simple and
multiple; training has the parallel ones, too, and variants of each of its items.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import Final

from ps_sglang.training.tasks import bfcl
from ps_sglang.training.tasks.items import Item, Split, first, test_only
from ps_sglang.training.tasks.variants import Words

_SEED: Final = 0
_TEST, _DEV = 200, 40
_HELD_OUT_FROM: Final = ("simple_python", "multiple")
_TRAINED_ON: Final = (*_HELD_OUT_FROM, "parallel", "parallel_multiple")
_VARIANTS: Final = 2  # of each training item
# Longer training prompts cost more than they teach; characters, of which four make a token.
_LONGEST_PROMPT: Final = 2_400


class ToolsTask:
    """An answer passes if BFCL's own AST checker accepts its calls."""

    name = "tools"
    max_new_tokens = 112
    trained = True

    def items(self, split: Split, count: int | None = None) -> list[Item]:
        whole = _train() if split == "train" else _splits()[split]
        return first(whole, count, f"tools {split}")

    def passed(self, items: Sequence[Item], answers: Sequence[str]) -> list[bool]:
        return [bfcl.passes(item, answer) for item, answer in zip(items, answers, strict=True)]


class LiveSimpleTask:
    """BFCL's live_simple, questions of users: other functions than those of `tools`."""

    name = "bfcl-live-simple"
    max_new_tokens = 192
    trained = False

    def items(self, split: Split, count: int | None = None) -> list[Item]:
        test_only(self.name, split)
        return first(_live_simple(), count, f"{self.name} test")

    def passed(self, items: Sequence[Item], answers: Sequence[str]) -> list[bool]:
        return [bfcl.passes(item, answer) for item, answer in zip(items, answers, strict=True)]


@functools.cache
def _live_simple() -> list[Item]:
    return bfcl.read("live_simple")


@functools.cache
def _splits() -> dict[Split, list[Item]]:
    source = random.Random(_SEED)
    every_item = [item for category in _TRAINED_ON for item in bfcl.read(category)]
    held_out = [item for item in every_item if item.check["category"] in _HELD_OUT_FROM]
    names = sorted(set().union(*map(bfcl.called, held_out)))
    source.shuffle(names)
    test, names = _take(held_out, names, _TEST)
    unseen = set().union(*map(bfcl.called, test))
    dev, _ = _take([item for item in held_out if not bfcl.offered(item) & unseen], names, _DEV)
    unseen |= set().union(*map(bfcl.called, dev))
    train = [item for item in every_item if not bfcl.offered(item) & unseen and not _is_long(item)]
    for items in (test, dev, train):
        source.shuffle(items)
    return {"train": train, "dev": dev, "test": test}


@functools.cache
def _train() -> list[Item]:
    """The items of the training split, and behind them their variants."""
    items = _splits()["train"]
    source = random.Random(_SEED)
    words = Words([(item.messages[-1]["content"], bfcl.calls_in(item.answer)) for item in items])
    functions = [function for item in items for function in item.check["functions"]]
    made = [
        bfcl.variant(item, f"{item.id}-{number}", words, functions, source)
        for number in range(1, _VARIANTS + 1)
        for item in items
    ]
    return [*items, *(item for item in made if not _is_long(item))]


def _is_long(item: Item) -> bool:
    return sum(len(message["content"]) for message in item.messages) > _LONGEST_PROMPT


def _take(items: list[Item], names: list[str], count: int) -> tuple[list[Item], list[str]]:
    """`count` items that call the first of `names`, and the names that are left."""
    chosen: list[Item] = []
    for used, name in enumerate(names):
        if len(chosen) >= count:
            return chosen[:count], names[used:]
        chosen += [item for item in items if bfcl.called(item) == {name}]
    raise AssertionError(f"{len(chosen)} items, not {count}")
