"""The command line of the evaluator. Must stay light: `--help` imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Final

from ps_sglang.parser import SettingsParser, user_path
from ps_sglang.training.evaluate.settings import Dtype, EvaluateSettings, Split
from ps_sglang.training.tasks import TASK_NAMES

_DESCRIPTION: Final = """\
Score a decoder on a task at any share ratio: of a prompt of n tokens the KV of the first
round(R * (n - 1 - tail)) comes from the base, the decoder reads the rest and answers greedily. The
tail is 0 unless the decoder was trained with one. R = 0 is an ordinary model, R = 1 without a tail
is what a cluster serves. Answers come from Hugging Face transformers in this process, and with
--through also from a running cluster."""

_EPILOG: Final = """\
exit status: 0 evaluated, 1 stopped (what was written stays), 2 refused before any work, 3 the
cluster's answers are not the offline ones

examples:
  ps-sglang evaluate --task code --base base --decoder ./code --share 0 0.5 1
  ps-sglang evaluate --task code --base base --decoder base --few-shot 4
  ps-sglang evaluate --task math --base base --decoder math=./m --share 1 \\
      --through http://127.0.0.1:8000 --out math.json --answers math.jsonl
  python -m ps_sglang.training.evaluate.figure code.json math.json --out figure.svg"""


# Flag -> (type, metavar, help); defaults are added from EvaluateSettings.
_FLAGS: Final[dict[str, tuple[Any, str, str]]] = {
    "task": (str, "TASK", f"one of {', '.join(TASK_NAMES)}"),
    "base": (str, "MODEL", "the base: a checkpoint folder, a demo model or a hub id"),
    "decoder": (
        str,
        "NAME=MODEL",
        "the decoder, adapter or whole model; the base for a base alone",
    ),
    "count": (int, "N", "only the first N items; 0: all of the split"),
    "few_shot": (int, "K", "put K training items with their answers in front of each question"),
    "system": (str, "NAME", "what the rows call the decoder (default its name)"),
    "seed": (int, "N", "seed of the decoder's training (default what its manifest says)"),
    "tail": (int, "TOKENS", "the decoder's tail (default what its manifest says)"),
    "batch_tokens": (int, "N", "tokens of prompts and answers in a batch"),
    "through": (str, "URL", "ask this gateway, too, and compare with the offline answers"),
    "at_once": (int, "N", "requests to the gateway at a time"),
    "out": (user_path, "FILE.json", "write the rows there"),
    "answers": (user_path, "FILE.jsonl", "write every answer there as soon as it is scored"),
    "figure": (user_path, "FILE.svg", "draw accuracy against share"),
}
_CHOICES: Final[dict[str, tuple[Any, str]]] = {
    "split": (Split, "which items of the task"),
    "dtype": (Dtype, "what both models compute in offline"),
}
_SWITCHES: Final = {
    "record": "put the score at share 1 into the decoder's prefillshare.json",
    "allow_unverified": "evaluate a decoder without a manifest if its shape fits the base",
}


def parse_args(argv: Sequence[str] | None) -> EvaluateSettings:
    """Raises UsageError that says what is wrong with which argument."""
    options = vars(_parser().parse_args(argv))
    if "share" in options:
        options["share"] = tuple(options["share"])
    return EvaluateSettings(**options)


def _parser() -> argparse.ArgumentParser:
    parser = SettingsParser("ps-sglang evaluate", description=_DESCRIPTION, epilog=_EPILOG)
    text = "share ratios, 0 to 1 (default 1); no value: only what --through answers"
    parser.add_argument("--share", type=float, metavar="R", nargs="*", help=text)
    parser.add_settings(EvaluateSettings, _FLAGS, _CHOICES, _SWITCHES)
    return parser
