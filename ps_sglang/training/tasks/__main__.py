"""`ps-sglang tasks`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ps_sglang.errors import PsSglangError, UsageError
from ps_sglang.progress import progress
from ps_sglang.training.tasks.args import Arguments, parse_args
from ps_sglang.training.tasks.items import Item, Split
from ps_sglang.training.tasks.registry import task


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 written, 2 refused."""
    try:
        for line in write(parse_args(argv)):
            print(line)
    except PsSglangError as error:
        progress(f"error: {error}")
        return 2
    return 0


def write(arguments: Arguments) -> list[str]:
    """Write the files of a task; returns a line about each."""
    chosen = task(arguments.task)
    if arguments.train_items is not None and not chosen.trained:
        raise UsageError(f"--train-items: {chosen.name} is only reported, it has no training items")
    splits: tuple[Split, ...] = ("train", "dev", "test") if chosen.trained else ("test",)
    data = {
        split: chosen.items(split, arguments.train_items if split == "train" else None)
        for split in splits
    }
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        return [_write(arguments.out / f"{split}.jsonl", items) for split, items in data.items()]
    except OSError as error:
        raise UsageError(f"--out {arguments.out}: cannot be written: {error}") from error


def _write(path: Path, items: Sequence[Item]) -> str:
    path.write_text("".join(json.dumps(item.to_row()) + "\n" for item in items))
    return f"{path}: {len(items)} items"


if __name__ == "__main__":
    sys.exit(main())
