"""Items made from the Berkeley Function Calling Leaderboard's data, and its own AST checker.

Prompts and answers are ours: functions and question in one conversation, calls in the Hermes
format, which a server's tool-call parser understands. A score is therefore never a BFCL score.
"""

from __future__ import annotations

import functools
import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from random import Random
from typing import Any, Final

from ps_sglang.training.tasks.items import Item
from ps_sglang.training.tasks.packages import import_bare, package_file
from ps_sglang.training.tasks.variants import (
    Words,
    exchanged,
    fixed_values,
    with_other_values,
    with_others,
)

PACKAGE: Final = "bfcl-eval"
_INSTRUCTION: Final = (
    "You can call these functions:\n{functions}\nAnswer only with calls, each as "
    '<tool_call>{{"name": ..., "arguments": {{...}}}}</tool_call>'
)
_CALL: Final = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_FENCE: Final = re.compile(r"```(?:json)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_LONGEST: Final = 10_000
_MOST_OFFERED: Final = 3  # functions of a variant, if its item has fewer
# BFCL's names of types -> those of JSON schema, where they differ; `any` is a string to BFCL.
_TYPES: Final = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}


def read(category: str) -> list[Item]:
    """The items of a category, such as `simple_python`, whose gold answer its checker accepts."""
    data = "bfcl_eval/data/"
    rows = _json_lines(f"{data}BFCL_v4_{category}.json")
    truths = {
        row["id"]: row["ground_truth"]
        for row in _json_lines(f"{data}possible_answer/BFCL_v4_{category}.json")
    }
    items = [_item(category, row, truths[row["id"]]) for row in rows]
    return [item for item in items if passes(item, item.answer)]


def variant(
    item: Item, id: str, words: Words, others: Sequence[dict[str, Any]], source: Random
) -> Item:
    """The item's question with other values, its functions in another order among some others.

    `words` are names that arguments may have instead, `others` functions that may be offered, too.
    """
    *earlier, asked = item.messages
    functions = item.check["functions"]
    system = earlier.pop(0)["content"].removesuffix(_instruction(functions)).rstrip("\n")
    question, became = with_other_values(
        asked["content"], calls_in(item.answer), fixed_values(functions), words, source
    )
    functions = with_others(functions, others, _MOST_OFFERED, source)
    messages = [{"role": "system", "content": system}] if system else []
    messages += [*earlier, {**asked, "content": question}]
    category = item.check["category"]
    if category == "simple_python" and len(functions) > 1:
        category = "multiple"  # BFCL's checker looks at the only function of a simple one
    row = {"id": id, "question": [messages], "function": functions}
    truth = [
        {
            name: {key: _accepted(values, became) for key, values in options.items()}
            for name, options in call.items()
        }
        for call in item.check["truth"]
    ]
    return _item(category, row, truth)


def called(item: Item) -> set[str]:
    """The functions that the right answer calls."""
    return {name for call in item.check["truth"] for name in call}


def offered(item: Item) -> set[str]:
    """The functions that the prompt describes."""
    return {function["name"] for function in item.check["functions"]}


def passes(item: Item, answer: str) -> bool:
    """Whether BFCL's AST checker accepts the calls in the answer."""
    check, python = _checker()
    try:
        verdict = check(
            item.check["functions"],
            calls_in(answer),
            item.check["truth"],
            python,
            item.check["category"],
            "",
        )
    # The checker takes what a model says as it is, and trips over it in many ways.
    except Exception:
        return False
    return bool(verdict["valid"])


def calls_in(answer: str) -> list[dict[str, dict[str, Any]]]:
    """The calls in an answer as `{name: arguments}`; none if any of them is malformed.

    Tagged calls count, else JSON in a fence, else an answer that is JSON: an object with `name`
    and `arguments`, or a list of them. One rule for every system that is compared.
    """
    text = answer[:_LONGEST]
    parts = _CALL.findall(text) or _FENCE.findall(text) or [text]
    calls = []
    for part in parts:
        try:
            value = json.loads(part)
        except (ValueError, RecursionError):
            return []
        for call in value if isinstance(value, list) else [value]:
            name, arguments = (
                (call.get("name"), call.get("arguments")) if isinstance(call, dict) else (0, 0)
            )
            if not isinstance(name, str) or not isinstance(arguments, dict):
                return []
            calls.append({name: arguments})
    return calls


def _json_lines(path: str) -> list[dict[str, Any]]:
    text = package_file(PACKAGE, path).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _item(category: str, row: dict[str, Any], truth: list[dict[str, Any]]) -> Item:
    functions = row["function"]
    system, *rest = _with_system(row["question"][0], _instruction(functions))
    required = {
        function["name"]: function["parameters"].get("required", ()) for function in functions
    }
    answers = [
        _compact({"name": name, "arguments": _arguments(options, required[name])})
        for call in truth
        for name, options in call.items()
    ]
    return Item(
        id=row["id"],
        messages=(system, *rest),
        answer="\n".join(f"<tool_call>{answer}</tool_call>" for answer in answers),
        check={"category": category, "functions": functions, "truth": truth},
    )


def _instruction(functions: Sequence[dict[str, Any]]) -> str:
    described = "\n".join(_compact(_schema(function)) for function in functions)
    return _INSTRUCTION.format(functions=described)


def _accepted(values: Sequence[Any], became: Mapping[Any, Any]) -> list[Any]:
    """What is accepted for an argument; of what was exchanged, no other spelling is."""
    pairs = [(value, exchanged(value, became)) for value in values]
    if all(old == new for old, new in pairs):
        return [*values]
    return [new for old, new in pairs if new != old or new == ""]


def _with_system(messages: Sequence[dict[str, str]], text: str) -> list[dict[str, str]]:
    """The conversation with `text` as its system message, after one that it may have."""
    system_texts = [message["content"] for message in messages if message["role"] == "system"]
    others = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": "\n".join([*system_texts, text])}, *others]


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _schema(value: Any) -> Any:
    """A function's description with the types of JSON schema."""
    if isinstance(value, list):
        return [_schema(child) for child in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _TYPES.get(child, child)
        if key == "type" and isinstance(child, str)
        else _schema(child)
        for key, child in value.items()
    }


def _arguments(options: Mapping[str, list[Any]], required: Collection[str]) -> dict[str, Any]:
    """The first accepted value of each argument but for those that may be left out: "" is one."""
    return {
        name: _value(accepted[0])
        for name, values in options.items()
        if (accepted := [value for value in values if value != ""])
        and ("" not in values or name in required)
    }


def _value(value: Any) -> Any:
    """An accepted value; objects inside it list the accepted values of their fields again."""
    if isinstance(value, dict):
        return _arguments(value, ())
    if isinstance(value, list):
        return [_value(element) for element in value]
    return value


@functools.cache
def _checker() -> tuple[Any, Any]:
    """BFCL's `ast_checker`, and its name for Python."""
    folder = "bfcl_eval/eval_checker/ast_eval/"
    # The real module imports every vendor's client; the checker only asks it whether a model's
    # function names had their dots replaced.
    stubs: dict[str, dict[str, Any]] = {
        "bfcl_eval.constants.model_config": {
            "MODEL_CONFIG_MAPPING": defaultdict(lambda: _ModelConfig)
        }
    }
    module = import_bare(PACKAGE, f"{folder}ast_checker.py", stubs)
    return module.ast_checker, module.Language.PYTHON


class _ModelConfig:
    underscore_to_dot = False
