"""What a record holds and the chat template does not render is never trained in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ps_sglang.errors import DataError
from ps_sglang.training.train.data_report import report
from ps_sglang.training.train.examples import Encoded, Encoder
from ps_sglang.training.train.records import read_data
from tests.training.train.train_setup import TOOL_TEMPLATE, tool_conversation, write_rows

END = 2  # <|im_end|>
USER = {"role": "user", "content": 'Weather in Paris & "Rome"?'}
ANSWER = {"role": "assistant", "content": "It is 21 <b>degrees</b>."}
ROLES = "<|im_start|>{{ m.role }}\n"
TURN = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.fixture
def tokenizer(tiny: dict[str, Path]) -> Any:
    return AutoTokenizer.from_pretrained(tiny["base"])


@pytest.fixture
def encode(tokenizer: Any, tmp_path: Path) -> Any:
    def encode_row(row: dict[str, Any], template: str | None = None, **flags: bool) -> Encoded:
        tokenizer.chat_template = template or tokenizer.chat_template
        encoder = Encoder(tokenizer, (END,), 2048, skip_long=False, **flags)
        return encoder.encode(read_data(str(write_rows(tmp_path / "d.jsonl", [row]))))

    return encode_row


def changed(*path: str | int, to: Any) -> dict[str, Any]:
    """The conversation with tools, one value of it set."""
    row: Any = tool_conversation()
    value = row
    for part in path[:-1]:
        value = value[part]
    value[path[-1]] = to
    return dict(row)


def problems(encode: Any, row: dict[str, Any], template: str | None = None) -> list[str]:
    """The fields that are named, each with its row and the template."""
    with pytest.raises(DataError) as caught:
        encode(row, template)
    found = []
    for line in str(caught.value).splitlines()[1:]:
        field, _, rest = line.strip().removeprefix("d.jsonl:1: ").partition(" is not, or not")
        assert "what the chat template of" in rest
        assert "base renders" in rest
        assert "--drop-unrendered" in rest
        found.append(field)
    return found


def test_a_template_that_knows_tools_shows_all(encode: Any, tokenizer: Any) -> None:
    encoded = encode(tool_conversation(), TOOL_TEMPLATE)
    answers = [tokenizer.decode(a.ids) for e in encoded.examples for a in e.answers]
    assert answers[0].startswith('<tool_call>{"name": "weather", "arguments": {"city": "Paris"')
    assert answers[1] == "It is 21.<|im_end|>"


def test_a_template_that_knows_none_is_refused(encode: Any) -> None:
    assert problems(encode, tool_conversation()) == ["messages[2].tool_calls", "tools"]


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"messages": [USER, ANSWER | {"reasoning_content": "hm"}]},
         "messages[1].reasoning_content"),
        ({"messages": [USER, ANSWER | {"thinking": {"a": [True]}}]}, "messages[1].thinking"),
        ({"messages": [USER | {"name": "Bo"}, ANSWER]}, "messages[0].name"),
        ({"messages": [USER, ANSWER | {"final": True}]}, "messages[1].final"),
        ({"messages": [USER, ANSWER | {"function_call": {"name": "f", "arguments": "{}"}}]},
         "messages[1].function_call"),
        ({"messages": [USER, ANSWER], "documents": [{"title": "x", "text": "y"}]}, "documents"),
        ({"messages": [USER, ANSWER], "chat_template_kwargs": {"style": "x"}}, "style"),
    ],
)  # fmt: skip
def test_each_field_that_is_not_rendered(encode: Any, row: dict[str, Any], field: str) -> None:
    assert problems(encode, row) == [field]


@pytest.mark.parametrize(
    ("template", "fields"),
    [
        # Of the tools only the names, of calls only the name, no result of a tool, no system.
        (TOOL_TEMPLATE.replace("t | tojson", "t.function.name"),
         ["tools[0].function.description", "tools[0].function.parameters"]),
        (TOOL_TEMPLATE.replace("c.function.arguments | tojson", "'{}'"),
         ["messages[2].tool_calls[0].function.arguments"]),
        # The values, but not what they are called.
        (TOOL_TEMPLATE.replace("arguments | tojson", "arguments.values() | list | tojson"),
         [f"messages[2].tool_calls[0].function.arguments.{k}" for k in ("city", "days", "deep")]),
        (TOOL_TEMPLATE.replace("m.content", "(m.content if m.role != 'tool' else '')"),
         ["messages[3].content"]),
        (TOOL_TEMPLATE.replace("m.content", "(m.content if m.role != 'system' else '')"),
         ["messages[0].content"]),
        (TOOL_TEMPLATE.replace("m.content", "m.content[:6]"),
         [f"messages[{index}].content" for index in (0, 1, 3, 4)]),
    ],
)  # fmt: skip
def test_what_a_template_leaves_out_of_a_tool_call(
    encode: Any, template: str, fields: list[str]
) -> None:
    assert template != TOOL_TEMPLATE
    assert problems(encode, tool_conversation(), template) == fields


@pytest.mark.parametrize(
    "content",
    [
        "{{ m.content | upper }}",
        "{{ m.content | lower }}",
        "{{ m.content | e }}",
        "{{ m.content | tojson }}",
        "{{ (m.content | upper) | e }}",
        "{{ '  ' + m.content | trim }}",
    ],
)
def test_escaped_is_shown(encode: Any, content: str) -> None:
    row = {"messages": [USER, ANSWER | {"content": 'Ja "é" <b>\n\tx\\y'}]}
    encode(row, "{% for m in messages %}" + ROLES + content + TURN)


def test_thoughts_that_a_template_takes_out_of_an_answer(encode: Any) -> None:
    """In the answer itself it is an error; in earlier turns it is how such models read."""
    drops = "{% for m in messages %}" + ROLES + "{{ m.content.split('</think>')[-1] }}" + TURN
    thought = ANSWER | {"content": "<think>hm</think>yes"}
    assert problems(encode, {"messages": [USER, thought]}, drops) == ["messages[1].content"]
    keeps = drops.replace("m.content.split", "m.content if loop.last else m.content.split")
    encode({"messages": [USER, thought, USER, thought]}, keeps)


def test_a_word_that_a_template_only_asks_for(encode: Any, tokenizer: Any) -> None:
    """A type, true and null may be rendered as another word, as long as they are asked for."""
    asks = TOOL_TEMPLATE.replace(
        "t | tojson",
        "t.function.name + t.function.description + (t.function.parameters.properties.items() "
        "| list | tojson)[:0]",
    ).replace(
        "{% endfor %}</tools>",
        "{% for k, p in t.function.parameters.properties.items() %}{{ k }}: "
        "{{ 'word' if p.type == 'string' else 'number' if p.type == 'integer' else 'any' }}"
        "{{ '' if p.nullable else '!' }}{% endfor %}{% endfor %}</tools>",
    )
    schema = {"type": "object", "properties": {"days": {"type": "integer", "nullable": True}}}
    row = changed("tools", 0, "function", "parameters", to=schema)
    encode(row, asks)
    assert problems(encode, row, asks.replace("'' if p.nullable else '!'", "''")) == [
        "tools[0].function.parameters.properties.days.nullable"
    ]


def test_a_setting_of_the_prompt_alone(encode: Any) -> None:
    """As those that switch thoughts off: the answer's own text need not show them."""
    asks = "{% for m in messages %}" + ROLES + "{{ m.content }}" + TURN
    asks = asks.replace("assistant\n", "assistant\n{% if not thinking %}It{% endif %}")
    row = {"messages": [USER, ANSWER], "chat_template_kwargs": {"thinking": False}}
    encode(row, asks)
    assert problems(encode, row, asks.replace("thinking", "thought")) == ["thinking"]


def test_a_value_that_stands_elsewhere_by_chance(encode: Any) -> None:
    """Its own place is what counts, not its letters."""
    row = {"messages": [USER | {"content": "Paris"}, ANSWER | {"reasoning_content": "Paris"}]}
    assert problems(encode, row) == ["messages[1].reasoning_content"]


def test_what_is_dropped_is_counted(encode: Any, tokenizer: Any) -> None:
    encoded = encode(tool_conversation(), drop_unrendered=True)
    [example] = encoded.examples
    assert [tokenizer.decode(answer.ids) for answer in example.answers] == ["It is 21.<|im_end|>"]
    assert list(report(encoded, 2048))[-3:] == [
        "  dropped: messages[].tool_calls in 1 record, which the text does not show",
        "  dropped: tools in 1 record, which the text does not show",
        "  left out: 1 answer of which the text shows nothing",
    ]


def test_columns_beside_a_conversation(encode: Any) -> None:
    row = {"messages": [USER, ANSWER], "id": 7, "source": "x", "prompt": USER["content"]}
    encoded = encode(row)
    assert list(report(encoded, 2048))[-1] == "  columns not read: id, source"
    text = {"prompt": "x", "completion": "y"}
    for beside in (row | {"system": "Be rude."}, text | {"system": "z"}):
        with pytest.raises(DataError, match=r"d.jsonl:1: system is read by nothing; take it out"):
            encode(beside)
        assert encode(beside, drop_unrendered=True).dropped == {"system": 1}


def test_text_after_a_stop_token(encode: Any, tokenizer: Any) -> None:
    rows: list[tuple[dict[str, Any], str]] = [
        ({"prompt": "x", "completion": "Use <|im_end|> to end"}, "completion"),
        ({"messages": [USER, ANSWER | {"content": "a<|im_end|>b"}]}, r"messages\[1\]"),
    ]
    for row, name in rows:
        with pytest.raises(
            DataError, match=rf"d.jsonl:1: {name} goes on after the stop token <\|im_end\|>"
        ):
            encode(row)
    [example] = encode({"prompt": "x", "completion": "done<|im_end|>\n"}).examples
    assert tokenizer.decode(example.answers[0].ids) == "done<|im_end|>"
