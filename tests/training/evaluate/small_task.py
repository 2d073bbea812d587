"""A task that costs nothing: any text is an answer, and half of them are right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ps_sglang.training.evaluate.settings import EvaluateSettings
from ps_sglang.training.tasks import Item, Split

WORDS = "the river town is far from here and the weather is a question for a model to answer"
ITEMS = {"train": 6, "dev": 4, "test": 10}


class SmallTask:
    name = "small"
    max_new_tokens = 12
    trained = True

    def items(self, split: Split, count: int | None = None) -> list[Item]:
        return [self._item(f"{split}-{number}", number) for number in range(ITEMS[split])][:count]

    def passed(self, items: Sequence[Item], answers: Sequence[str]) -> list[bool]:
        assert len(items) == len(answers)
        return [right(answer) for answer in answers]

    def _item(self, name: str, number: int) -> Item:
        words = WORDS.split()
        question = " ".join(words[(number * 7 + i) % len(words)] for i in range(3 + 4 * number))
        messages = (
            {"role": "system", "content": "Answer with a word."},
            {"role": "user", "content": question},
        )
        return Item(name, messages, f"word {number}", {"number": number})


def right(answer: str) -> bool:
    return sum(map(ord, answer)) % 2 == 0


def settings(tiny: dict[str, Path], **changes: Any) -> EvaluateSettings:
    """Of the tiny decoder `a` on its base."""
    common = {"task": "small", "base": str(tiny["base"]), "decoder": str(tiny["a"])}
    return EvaluateSettings(**common | changes)
