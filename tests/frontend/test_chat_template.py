"""The models' chat templates in SGLang's form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pytest
import sglang as sgl
from transformers import AutoTokenizer

from ps_sglang.frontend import PrefillShareBackend
from ps_sglang.frontend.chat_template import (
    ChatTemplateError,
    Message,
    Render,
    chat_template_of,
    derive,
)
from tests.frontend.counting_gateway import Gateway

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As SmolLM2's and Qwen2's: a system message of its own where none is given.
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
) + CHATML
# As Llama 2's: what the system says is part of what the user says.
INSIDE_USER = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'system' %}<<SYS>>{{ m.content }}<</SYS>>{% else %}{{ m.content }}</s>"
    "{% endif %}{% endfor %}"
)
# As Gemma's: the first message is treated in another way.
FIRST_DIFFERS = "{% for m in messages %}{{ 'FIRST ' if loop.first }}{{ m.content }}\n{% endfor %}"
NO_ASSISTANT = "{% for m in messages if m.role != 'assistant' %}{{ m.content }};{% endfor %}"

TALK: list[Message] = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Three?"},
]
SYSTEM: Message = {"role": "system", "content": "Count."}


def renderer(source: str) -> Render:
    template = jinja2.Environment().from_string(source)

    def render(messages: Any, answer: bool) -> str:
        return template.render(messages=messages, add_generation_prompt=answer)

    return render


@pytest.mark.parametrize("source", [CHATML, DEFAULT_SYSTEM, INSIDE_USER])
@pytest.mark.parametrize("talk", [TALK, [SYSTEM, *TALK]])
def test_conversations_come_out_as_the_template_has_them(source: str, talk: list[Message]) -> None:
    render = renderer(source)
    template = derive("test", render, "<|im_end|>")
    default = template.default_system_prompt
    if default and talk[0] is not SYSTEM:
        talk = [{"role": "system", "content": default}, *talk]
    opening = template.role_prefix_and_suffix["assistant"][0]
    assert template.get_prompt(talk) + opening == render(talk, True)


def test_the_default_system_message_is_found() -> None:
    assert derive("test", renderer(DEFAULT_SYSTEM), None).default_system_prompt == "Be brief."
    assert not derive("test", renderer(CHATML), None).default_system_prompt


@pytest.mark.parametrize(("end", "stop"), [("<|im_end|>", ()), ("</s>", ("<|im_end|>",))])
def test_what_ends_an_answer_stops_it(end: str, stop: tuple[str, ...]) -> None:
    assert derive("test", renderer(CHATML), end).stop_str == stop


@pytest.mark.parametrize("source", [FIRST_DIFFERS, NO_ASSISTANT])
def test_what_the_language_cannot_express_is_refused(source: str) -> None:
    with pytest.raises(ChatTemplateError):
        derive("test", renderer(source), None)


@sgl.function
def talk(s: Any) -> None:
    s += sgl.user("One?")
    s += sgl.assistant("Two.")
    s += sgl.user("Three?")
    s += sgl.assistant_begin()


def test_a_programs_tokens_are_those_of_the_chat_template(
    tiny: dict[str, Path], backend: PrefillShareBackend
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny["base"])
    whole = tokenizer.apply_chat_template(TALK, add_generation_prompt=True, return_dict=True)
    text = talk.run(backend=backend).text()
    assert tokenizer(text).input_ids == whole["input_ids"]


def with_template(folder: Path, out: Path, template: str | None) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(out)
    return out


def test_a_tokenizer_without_template(tiny: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ChatTemplateError, match=r"it has none\. Give tokenizer="):
        chat_template_of(str(with_template(tiny["base"], tmp_path, None)))


def test_a_template_that_raises(tiny: dict[str, Path], tmp_path: Path) -> None:
    strict = "{{ raise_exception('no system role') }}"
    with pytest.raises(ChatTemplateError, match="no system role"):
        chat_template_of(str(with_template(tiny["base"], tmp_path, strict)))


def test_a_tokenizer_elsewhere(gateway: Gateway, tiny: dict[str, Path]) -> None:
    gateway.model_info["tokenizer_path"] = "/on/another/machine"
    with pytest.raises(ChatTemplateError, match="/on/another/machine"):
        PrefillShareBackend(gateway.url)
    here = PrefillShareBackend(gateway.url, tokenizer=str(tiny["a"]))
    assert talk.run(backend=here).text().startswith("<|im_start|>user\nOne?")
    named = PrefillShareBackend(gateway.url, chat_template_name="vicuna_v1.1")
    assert "USER:One?" in talk.run(backend=named).text()


def test_an_unknown_name_of_a_template(gateway: Gateway) -> None:
    with pytest.raises(ChatTemplateError, match="no chat template called 'chat-ml'"):
        PrefillShareBackend(gateway.url, chat_template_name="chat-ml")
