"""The study's data: what is trained on, searched with and chosen by, as the trainer's files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.studies.accuracy.plan import Recipe, Study
from ps_sglang.training.tasks import Item, task

TRAIN: Final = "train"
ADAPTER: Final = "adapter"
# Characters of a list of functions that stands before another task's question.
_LONGEST_CONTEXT: Final = 600
_CONTEXTS: Final = 448  # items whose lists of functions are looked at


def write_data(study: Study, recipe: Recipe) -> None:
    """`train`, `search`, `dev` and `adapter` in the task's folder."""
    chosen = task(recipe.task)
    train = chosen.items("train", recipe.examples)
    folder = study.data(recipe.task)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / f"{TRAIN}.jsonl", (item.to_row() for item in train))
    _write(folder / "search.jsonl", (i.to_row() for i in train[: recipe.search_examples]))
    _write(folder / "dev.jsonl", (i.to_row() for i in chosen.items("dev", recipe.dev_examples)))
    if study.adapters:
        _write(folder / f"{ADAPTER}.jsonl", in_contexts(train))


def in_contexts(train: Sequence[Item]) -> Iterator[dict[str, Any]]:
    """Training rows of which every second has another task's context in front.

    The demo's decoders answer in one context, the list of functions of the tools decoder; a
    decoder that never saw one would take it for its own task. Items with a context keep it.
    """
    contexts = _function_lists()
    for number, item in enumerate(train):
        row = item.to_row()
        if number % 2 and row["messages"][0]["role"] != "system":
            content = contexts[number % len(contexts)]
            row["messages"].insert(0, {"role": "system", "content": content})
        yield row


def _function_lists() -> list[str]:
    items = task("tools").items("train", _CONTEXTS)
    contexts = [item.messages[0]["content"] for item in items]
    return [text for text in contexts if len(text) <= _LONGEST_CONTEXT]


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
