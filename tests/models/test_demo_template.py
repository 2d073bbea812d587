"""The demo's chat template: tools and calls exactly as in the data that `tools` was trained on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from ps_sglang.demo import TOOLS
from ps_sglang.gateway.index.chat import ChatTemplate
from ps_sglang.models import demo
from ps_sglang.training.tasks import bfcl
from ps_sglang.training.tasks.items import Item
from ps_sglang.training.tasks.tools import ToolsTask

SOURCE = demo.CHAT_TEMPLATE.read_text(encoding="utf-8")
QUESTION = {"role": "user", "content": "What?"}


def rendered(messages: list[dict[str, Any]], tools: Any = None, *, generate: bool = True) -> str:
    """By transformers, whose environment the engine and the trainer use."""
    texts, _ = render_jinja_template(
        [messages], tools=tools, chat_template=SOURCE, add_generation_prompt=generate
    )
    return str(texts[0])


def as_asked(item: Item) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The item's messages without the functions, and the functions as a client gives them."""
    system, *others = item.messages
    own = system["content"].removesuffix(bfcl._instruction(item.check["functions"])).rstrip("\n")
    messages = [{"role": "system", "content": own}] if own else []
    functions = [bfcl._schema(function) for function in item.check["functions"]]
    return [*messages, *others], [{"type": "function", "function": one} for one in functions]


def as_calls(answer: str) -> dict[str, Any]:
    calls = [
        {"type": "function", "function": {"name": name, "arguments": arguments}}
        for call in bfcl.calls_in(answer)
        for name, arguments in call.items()
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def test_tools_and_calls_are_what_the_decoder_was_trained_on() -> None:
    items = ToolsTask().items("train")
    several = 0
    for item in items:
        messages, tools = as_asked(item)
        told = [*item.messages, {"role": "assistant", "content": item.answer}]
        assert rendered(messages, tools) == rendered([*item.messages])
        calls = as_calls(item.answer)
        assert rendered([*messages, calls], tools) == rendered(told)
        several += len(calls["tool_calls"]) > 1
    assert several


@pytest.mark.parametrize(
    ("function", "line"),
    [
        ({"name": "f"}, '{"name":"f","parameters":{"type":"object","properties":{}}}'),
        (
            {
                "description": 'ä "b"\n',
                "strict": True,
                "name": "f",
                "parameters": {"z": 1, "a": []},
            },
            '{"name":"f","description":"ä \\"b\\"\\n","parameters":{"z":1,"a":[]}}',
        ),
        (
            {"name": "f", "description": None, "parameters": None},
            '{"name":"f","parameters":{"type":"object","properties":{}}}',
        ),
    ],
)
def test_what_a_client_may_leave_out(function: dict[str, Any], line: str) -> None:
    for tool in ({"type": "function", "function": function}, function):
        assert rendered([QUESTION], [tool]).split("\n")[2] == line


def test_a_call_is_rendered_as_it_was_said() -> None:
    said = {"name": "f", "arguments": {"x": "ä", "y": [1, 2.5]}}
    calls = [{"function": said}, {"function": {**said, "arguments": json.dumps({"x": 1})}}]
    message = {"role": "assistant", "content": "Well:", "tool_calls": calls}
    assert rendered([QUESTION, message], TOOLS, generate=False).endswith(
        '<|im_start|>assistant\nWell:\n<tool_call>{"name":"f","arguments":{"x":"ä","y":[1,2.5]}}'
        '</tool_call>\n<tool_call>{"name":"f","arguments":{"x": 1}}</tool_call><|im_end|>\n'
    )


def test_the_gateway_renders_the_same() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "21"},
    ]
    own, continued = ChatTemplate(SOURCE, {}).render({"messages": messages, "tools": TOOLS})
    said = {"function": {"name": "f", "arguments": {"x": 1}}}
    messages[2] = {"role": "assistant", "content": "", "tool_calls": [said]}
    assert (own, continued) == (rendered(messages, TOOLS), "")
