"""What the study consists of. Every number that a result depends on is here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ps_sglang.training.train.settings import Dtype, Method

METHODS: Final[tuple[Method, ...]] = ("full", "cache-conditioned")
# The demo's adapters. Three passes over 448 examples of tools gave no better one: 37.0 % instead
# of 39.5.
LORA_EPOCHS: Final = 1
LORA_RANK: Final = 8
LORA_RATE: Final = 1.5e-3
SHARES: Final = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Recipe:
    """One task's data and steps, the same for every training of it.

    `examples` of the train split, each seen `epochs` times; the search for a learning rate takes
    the first `search_examples` once and scores by the loss on `dev_examples`. `few_shot` examples
    stand before the base's questions in its second row. `report_only` is the task of its kind that
    nothing is trained on. Both trainings choose from `rates`.
    """

    task: str
    examples: int
    epochs: int
    search_examples: int
    dev_examples: int
    few_shot: int
    report_only: str
    rates: tuple[float, ...]
    batch_size: int = 8

    @property
    def steps(self) -> int:
        """Of a training; an even number, for there is a checkpoint in the middle."""
        steps, rest = divmod(self.examples * self.epochs, self.batch_size)
        assert rest == steps % 2 == 0, f"{self.task}: {self.examples} examples are no whole steps"
        return steps


RECIPES: Final = {
    recipe.task: recipe
    for recipe in (
        Recipe("code", 480, 1, 128, 40, 2, "humaneval", (5e-5, 1.5e-4, 5e-4)),
        Recipe("math", 960, 1, 128, 40, 2, "gsm8k", (5e-5, 1.5e-4)),
        Recipe("tools", 1648, 1, 64, 40, 2, "bfcl-live-simple", (5e-5, 1.5e-4, 5e-4)),
    )
}


@dataclass(frozen=True)
class Study:
    """A run of the study: which part of it, where, and how.

    `count` 0 means all test items. `at_once` jobs run at a time, each on its part of the cores.
    """

    recipes: tuple[Recipe, ...]
    seeds: tuple[int, ...]
    work: Path
    base: str = "base"
    shares: tuple[float, ...] = SHARES
    count: int = 0
    adapters: bool = True
    report_only: bool = True
    dtype: Dtype = "bfloat16"
    at_once: int = 1
    keep_kv_gb: float = 20.0

    def data(self, task: str) -> Path:
        return self.work / "data" / task
