"""The BFCL-derived held-out split: functions kept apart, scoring by BFCL's checker."""

from __future__ import annotations

import json

import pytest

from ps_sglang.training.tasks import Item, Split, bfcl, task
from tests.training.tasks.task_setup import digest, needs

pytestmark = needs(bfcl.PACKAGE)

TOOLS = task("tools")
LIVE = task("bfcl-live-simple")
SPLITS: tuple[Split, ...] = ("train", "dev", "test")


def tagged(name: str, **arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def called(items: list[Item]) -> set[str]:
    return set().union(*map(bfcl.called, items))


def offered(items: list[Item]) -> set[str]:
    return set().union(*map(bfcl.offered, items))


def test_no_function_that_is_called_in_test_or_dev_is_offered_in_training() -> None:
    train, dev, test = (TOOLS.items(split) for split in SPLITS)
    assert called(train) <= offered(train)
    assert not called(test) & offered(train)
    assert not called(test) & offered(dev)
    assert not called(dev) & offered(train)


def test_sizes_and_kinds() -> None:
    kinds = {split: {item.check["category"] for item in TOOLS.items(split)} for split in SPLITS}
    assert kinds["test"] == kinds["dev"] == {"simple_python", "multiple"}
    assert kinds["train"] == kinds["test"] | {"parallel", "parallel_multiple"}
    sizes = [len(TOOLS.items(split)) for split in SPLITS]
    assert sizes == [1656, 40, 200]
    assert len(LIVE.items("test")) == 256


def test_live_simple_asks_for_other_functions() -> None:
    assert len(called(LIVE.items("test")) & offered(TOOLS.items("train"))) <= 2


def test_the_items_are_the_same_on_every_machine() -> None:
    found = {split: digest(TOOLS.items(split)) for split in SPLITS}
    assert found == {
        "train": "f8f6479e97b2a41b",
        "dev": "367b6598db31888e",
        "test": "94c08c144ed0fee2",
    }
    assert digest(LIVE.items("test")) == "4c8190d2d716461a"


def test_the_items_themselves_come_before_their_variants() -> None:
    train = TOOLS.items("train")
    assert digest(train[:554]) == "acb8ab00f1ea0edb"
    made_of = {item.id: item for item in train[:554]}
    variants = [(item, made_of[item.id.rsplit("-", 1)[0]]) for item in train[554:]]
    assert sum(item.answer != origin.answer for item, origin in variants) > 0.8 * len(variants)
    assert all(bfcl.called(item) == bfcl.called(origin) for item, origin in variants)
    assert all(bfcl.offered(item) >= bfcl.offered(origin) for item, origin in variants)


def test_a_variant_accepts_no_value_of_the_question_that_it_was_made_of() -> None:
    train = {item.id: item for item in TOOLS.items("train")}
    origin, variant = train["simple_python_312"], train["simple_python_312-2"]
    assert origin.answer != variant.answer
    assert TOOLS.passed([variant, variant], [variant.answer, origin.answer]) == [True, False]


@pytest.mark.parametrize("split", SPLITS)
def test_gold_answers_pass(split: Split) -> None:
    items = TOOLS.items(split)
    assert TOOLS.passed(items, [item.answer for item in items]) == [True] * len(items)


def test_gold_answers_of_live_simple_pass() -> None:
    items = LIVE.items("test")
    assert LIVE.passed(items, [item.answer for item in items]) == [True] * len(items)


def test_the_answer_of_another_item_fails() -> None:
    items = TOOLS.items("test")
    shifted = [item.answer for item in (*items[1:], items[0])]
    assert TOOLS.passed(items, shifted) == [False] * len(items)


ITEM = Item(
    id="one",
    messages=(),
    answer="",
    check={
        "category": "simple_python",
        "functions": [
            {
                "name": "area",
                "parameters": {
                    "type": "dict",
                    "properties": {
                        "base": {"type": "integer"},
                        "unit": {"type": "string"},
                    },
                    "required": ["base"],
                },
            }
        ],
        "truth": [{"area": {"base": [10], "unit": ["units", ""]}}],
    },
)


@pytest.mark.parametrize(
    "answer",
    [
        tagged("area", base=10),
        tagged("area", base=10, unit="units"),
        f"Sure: {tagged('area', base=10)} Done.",
        tagged("area", base=10).removesuffix("</tool_call>"),
        '```json\n{"name": "area", "arguments": {"base": 10}}\n```',
        '{"name": "area", "arguments": {"base": 10}}',
        '[{"name": "area", "arguments": {"base": 10}}]',
    ],
)
def test_a_right_call_passes_however_it_is_wrapped(answer: str) -> None:
    assert TOOLS.passed([ITEM], [answer]) == [True]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "area(base=10)",
        "[]",
        "null",
        "[" * 5_000,
        tagged("area", base=11),
        tagged("area", base="10"),
        tagged("area"),
        tagged("area", base=10, unit="metres"),
        tagged("area", base=10, height=3),
        tagged("volume", base=10),
        tagged("area", base=10) * 2,
        '<tool_call>{"name": "area", "arguments": "base"}</tool_call>',
        '<tool_call>{"name": ["area"], "arguments": {}}</tool_call>',
        f"<tool_call>not JSON</tool_call>{tagged('area', base=10)}",
    ],
)
def test_anything_else_fails(answer: str) -> None:
    assert TOOLS.passed([ITEM], [answer]) == [False]


def test_schemas_have_the_types_of_json_schema() -> None:
    for item in TOOLS.items("test"):
        for line in item.messages[0]["content"].splitlines()[1:-1]:
            types = _types(json.loads(line)["parameters"])
            assert types <= {"object", "array", "string", "number", "integer", "boolean"}


def _types(schema: object) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(_types, schema))
    if not isinstance(schema, dict):
        return set()
    own = {schema["type"]} if isinstance(schema.get("type"), str) else set()
    return own.union(*map(_types, schema.values()))


@pytest.mark.engine
def test_the_engine_parses_the_gold_answers_to_the_same_calls() -> None:
    from sglang.srt.entrypoints.openai.protocol import Function, Tool
    from sglang.srt.function_call.hermes_detector import HermesDetector

    for item in (*TOOLS.items("train"), *TOOLS.items("test")):
        tools = [Tool(type="function", function=Function(name=name)) for name in bfcl.offered(item)]
        parsed = HermesDetector().detect_and_parse(item.answer, tools).calls
        calls = [{call.name: json.loads(call.parameters)} for call in parsed]
        assert calls == bfcl.calls_in(item.answer)
