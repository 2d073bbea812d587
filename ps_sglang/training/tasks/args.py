"""The command line of `ps-sglang tasks`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ps_sglang.parser import SettingsParser, user_path
from ps_sglang.training.tasks.registry import TASK_NAMES

_DESCRIPTION: Final = """\
Write the data of a task as JSON lines, as the trainer reads them: OUT/train.jsonl, OUT/dev.jsonl
and OUT/test.jsonl. A task that is only reported has no train.jsonl and dev.jsonl.

Every machine gets the same items. The test items are held out: train on train.jsonl, choose by
dev.jsonl, report on test.jsonl."""

_EPILOG: Final = """\
tasks:
  code              write a list pipeline in Python (made here); executed on 8 inputs
  tools             call a function as JSON, BFCL-derived held-out split; BFCL's AST checker
  math              chain_sum and leg_counting of reasoning-gym; the final number
  humaneval         report only: HumanEval's 164 items; its own tests
  gsm8k             report only: 100 test items of GSM8K; the final number
  bfcl-live-simple  report only: BFCL's live_simple; BFCL's AST checker

examples:
  ps-sglang tasks code --out data/code
  ps-sglang train --base base --data data/code/train.jsonl \\
      --eval-data data/code/dev.jsonl --out ./code"""


@dataclass(frozen=True)
class Arguments:
    """What was asked for."""

    task: str
    out: Path
    train_items: int | None = None


def parse_args(argv: Sequence[str] | None) -> Arguments:
    """Raises UsageError that says what is wrong with which argument."""
    parser = SettingsParser("ps-sglang tasks", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("task", choices=TASK_NAMES, metavar="TASK", help="one of the tasks below")
    parser.add_argument(
        "--out", type=user_path, metavar="DIR", required=True, help="folder for the files"
    )
    parser.add_argument(
        "--train-items",
        type=int,
        metavar="N",
        help="write only the first N items to train.jsonl (default all)",
    )
    return Arguments(**vars(parser.parse_args(argv)))
