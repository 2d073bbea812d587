"""Chats as text; `tests/engine/test_addresses.py` compares with what the engine makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ps_sglang.gateway.config import ChatFlags
from ps_sglang.gateway.index.chat import ChatTemplate, NoChatText

PLAIN = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
TOOLS = "{{ tools | tojson }}|{% for m in messages %}{{ m | tojson }}\n{% endfor %}"
PARTS = (
    "{% for message in messages %}{% for part in message.content %}<{{ part.text }}>"
    "{% endfor %}{% endfor %}"
)


def _user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _text(source: str, *messages: dict[str, Any], **body: Any) -> str:
    text, continued = ChatTemplate(source, {}).render({"messages": list(messages), **body})
    assert continued == ""
    return text


def test_a_chat_is_the_template_filled() -> None:
    messages = [{"role": "system", "content": "Be kind."}, _user("Hi ä"), _user(None)]
    want = "[system]Be kind.\n[user]Hi ä\n[user]\n[assistant]"
    assert _text(PLAIN, *messages) == want


def test_parts_are_joined_where_the_template_takes_texts() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert _text(PLAIN, _user(parts)) == "[user]one two\n[assistant]"


@pytest.mark.parametrize("loop", ["message.content", "message['content'] | list", "m.content[0:]"])
def test_parts_are_kept_where_the_template_goes_through_them(loop: str) -> None:
    source = PARTS.replace("message.content", loop)
    if loop.startswith("m."):
        source = source.replace("for message in", "for m in")
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert _text(source, _user(parts)) == "<one><two>"


def test_the_answer_continues_its_beginning() -> None:
    body = {"messages": [_user("Q"), {"role": "assistant", "content": "Well"}]}
    template = ChatTemplate(PLAIN, {})
    assert template.render({**body, "continue_final_message": True}) == (
        "[user]Q\n[assistant]",
        "Well",
    )
    assert template.render(body) == ("[user]Q\n[user]Well\n[assistant]", "")


def test_tools_and_calls_look_as_the_engine_passes_them_on() -> None:
    tool = {
        "type": "function",
        "extra": 1,
        "function": {"name": "f", "strict": None, "parameters": {"b": 1, "a": 2}},
    }
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": "ä"}'}}
    said = {"role": "Assistant", "content": None, "tool_calls": [call], "unknown": 1}
    result = {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "r"}]}
    head, messages = _text(TOOLS, said, result, tools=[tool]).split("|")
    assert head == (
        '[{"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": 2}, '
        '"description": null}, "defer_loading": null}]'
    )
    assert [json.loads(line) for line in messages.splitlines()] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "1",
                    "index": None,
                    "type": "function",
                    "function": {"name": "f", "arguments": {"x": "ä"}},
                }
            ],
        },
        {"role": "tool", "content": "r", "tool_call_id": "1"},
    ]


@pytest.mark.parametrize(
    ("choice", "names"),
    [("auto", ["f", "g"]), ("none", None), ({"function": {"name": "g"}}, ["g"])],
)
def test_the_choice_of_a_tool_says_which_are_shown(choice: Any, names: list[str] | None) -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
    shown = json.loads(_text("{{ tools | tojson }}", _user("x"), tools=tools, tool_choice=choice))
    assert (shown and [tool["function"]["name"] for tool in shown]) == names


def test_variables_come_from_the_request_and_the_tokenizer() -> None:
    source = "{{ bos_token }}{{ enable_thinking }}{{ reasoning_effort }}{{ mine }}"
    template = ChatTemplate(source, {"bos_token": "<s>"})
    body = {"messages": [_user("x")], "chat_template_kwargs": {"mine": 1}}
    assert template.render(body)[0] == "<s>1"
    body["reasoning_effort"] = "none"
    assert template.render(body)[0] == "<s>Falsenone1"
    body["chat_template_kwargs"] = {"enable_thinking": True}
    assert template.render(body)[0] == "<s>Truenone"


def test_a_generation_block_shows_its_inside() -> None:
    source = "a{% generation %}b{{ messages[0].content }}{% endgeneration %}"
    assert _text(source, _user("c")) == "abc"


def test_functions_without_their_wrapper_are_tried_next() -> None:
    source = "{% for tool in tools %}{{ tool.name.upper() }}{% endfor %}"
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert _text(source, _user("x"), tools=tools) == "F"


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [_user("x")]},
        {"messages": [{"content": "no role"}]},
        {"messages": [_user("x")], "tools": 7},
        {"messages": [_user("x")], "tools": [7]},
    ],
)
def test_what_the_template_refuses_has_no_text(body: dict[str, Any]) -> None:
    with pytest.raises(NoChatText, match="refuses"):
        ChatTemplate("{{ raise_exception('never') }}", {}).render(body)


def test_the_template_is_read_as_the_engine_reads_it(tmp_path: Path) -> None:
    config: dict[str, Any] = {"bos_token": {"content": "<b>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(NoChatText, match="has no chat template"):
        ChatTemplate.load(tmp_path)
    body = {"messages": [_user("x")]}
    several = {"first": "{{bos_token}}", "default": "no", "tool_use": "{{tools}}"}
    named = [{"name": name, "template": template} for name, template in several.items()]
    for given, want in (("{{bos_token}}1", "<b>1"), (named, "<b>")):
        config["chat_template"] = given
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        assert ChatTemplate.load(tmp_path).render(body)[0] == want
    assert ChatTemplate.load(tmp_path, ChatFlags(name="tool_use")).render(body)[0] == "None"
    (tmp_path / "chat_template.jinja").write_text("beside")
    assert ChatTemplate.load(tmp_path).render(body)[0] == "beside"


def test_a_template_given_by_a_flag_wins(tmp_path: Path) -> None:
    """It is read as SGLang does: an escaped newline is one, wherever it stands."""
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "chat_template": "own"}')
    file = tmp_path / "mine.jinja"
    file.write_text("\n{{ bos_token }}\\n{{ 'a\\nb' }}{{ mood }}\n\n")
    flags = ChatFlags(str(file), variables={"mood": "glad"})
    template = ChatTemplate.load(tmp_path, flags)
    body: dict[str, Any] = {"messages": [_user("x")]}
    assert template.render(body)[0] == "<s>\na\nbglad"
    body["chat_template_kwargs"] = {"mood": "sad"}
    assert template.render(body)[0] == "<s>\na\nbsad"
    with pytest.raises(NoChatText, match="--chat-template chatml is rendered inside SGLang"):
        ChatTemplate.load(tmp_path, ChatFlags("chatml"))
    with pytest.raises(NoChatText, match="no chat template can be read from"):
        ChatTemplate.load(tmp_path, ChatFlags(str(tmp_path / "none.jinja")))


def test_a_default_effort_is_the_engines(tmp_path: Path) -> None:
    """A server's default wins over the request's own field, as SGLang has it."""
    template = ChatTemplate("{{ reasoning_effort }}", {}, {"reasoning_effort": "low"})
    body = {"messages": [_user("x")], "reasoning_effort": "high"}
    assert template.render(body)[0] == "low"
    assert ChatTemplate("{{ reasoning_effort }}", {}).render(body)[0] == "high"


def test_a_folder_or_template_with_an_error_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoChatText, match="no chat template can be read"):
        ChatTemplate.load(tmp_path)
    with pytest.raises(NoChatText, match="has an error"):
        ChatTemplate("{% for", {})
