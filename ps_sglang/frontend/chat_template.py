"""The models' own chat template in the form of SGLang's frontend language.

The language wraps each message in a prefix and suffix by its role, and looks these up by the
model's name. A folder's name says little, so they are read off the tokenizer's template here, by
rendering conversations of placeholders and cutting at them. A template that is no matter of fixed
prefixes and suffixes is refused rather than approximated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from sglang.lang.chat_template import ChatTemplate, get_chat_template

Message = dict[str, str]
Render = Callable[[Sequence[Message], bool], str]
"""From messages, and whether to open the assistant's answer, to text."""

_SYSTEM: Final[Message] = {"role": "system", "content": "@system@"}
_USER: Final[Message] = {"role": "user", "content": "@user@"}
_ASSISTANT: Final[Message] = {"role": "assistant", "content": "@assistant@"}
_CONVERSATIONS: Final = (
    (_USER,),
    (_SYSTEM, _USER),
    (_USER, _ASSISTANT, _USER),
    (_SYSTEM, _USER, _ASSISTANT, _USER, _ASSISTANT, _USER),
)


class ChatTemplateError(ValueError):
    """There is no chat template, or the frontend language cannot express it."""


def chat_template_of(tokenizer: str) -> ChatTemplate:
    """The chat template of a tokenizer, given by folder or hub id.

    Raises ChatTemplateError if it cannot be read; the message says what to give instead.
    """
    # Imported late: it takes seconds, and programs that name a template do not need it.
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer)
        return derive(tokenizer, _renderer(loaded), loaded.eos_token)
    except (OSError, ValueError, TemplateError) as error:
        raise ChatTemplateError(
            f"no chat template from the tokenizer {tokenizer}: {error}. Give tokenizer= (a folder "
            "on this machine, or a hub id) or chat_template_name= (one that SGLang knows)"
        ) from error


def named_chat_template(name: str) -> ChatTemplate:
    """One of the templates registered in SGLang.

    Raises ChatTemplateError if there is none of that name.
    """
    try:
        return get_chat_template(name)
    except KeyError as error:
        raise ChatTemplateError(f"SGLang has no chat template called {name!r}") from error


def derive(name: str, render: Render, end: str | None) -> ChatTemplate:
    """Read the prefixes and suffixes off `render`; `end` is the token that ends a generation.

    Raises ChatTemplateError if fixed prefixes and suffixes do not give what `render` gives.
    """
    _, user_suffix = _around(_USER, render([_USER], False))
    _, answer_suffix = _around(_ASSISTANT, render([_USER, _ASSISTANT], False))
    _, after_answer = _around(_ASSISTANT, render([_USER, _ASSISTANT, _USER], False))
    user_prefix = _around(_USER, after_answer)[0].removeprefix(answer_suffix)
    answer_prefix = render([_USER], True).removeprefix(render([_USER], False))
    system_prefix, after_system = _around(_SYSTEM, render([_SYSTEM, _USER], False))
    system_suffix = _around(_USER, after_system)[0].removesuffix(user_prefix)
    default = _around(_USER, render([_USER], False))[0].removesuffix(user_prefix)
    stop = answer_suffix.strip()
    template = ChatTemplate(
        name=name,
        default_system_prompt=default.removeprefix(system_prefix).removesuffix(system_suffix),
        role_prefix_and_suffix={
            "system": (system_prefix, system_suffix),
            "user": (user_prefix, user_suffix),
            "assistant": (answer_prefix, answer_suffix),
        },
        # The end token ends a generation anyway, and special tokens are not in its text.
        stop_str=() if stop in ("", end) else (stop,),
    )
    _check(template, render)
    return template


def _around(message: Message, text: str) -> tuple[str, str]:
    prefix, content, suffix = text.partition(message["content"])
    if not content:
        raise ChatTemplateError(f"it leaves out what the {message['role']} says")
    return prefix, suffix


def _check(template: ChatTemplate, render: Render) -> None:
    default: list[Message] = []
    if template.default_system_prompt:
        default = [{"role": "system", "content": template.default_system_prompt}]
    opening, _ = template.role_prefix_and_suffix["assistant"]
    for messages in _CONVERSATIONS:
        filled = [*([] if messages[0] is _SYSTEM else default), *messages]
        if template.get_prompt(filled) + opening != render(messages, True):
            raise ChatTemplateError("it is not made of a fixed prefix and suffix for each role")


def _renderer(tokenizer: Any) -> Render:
    if tokenizer.chat_template is None:
        raise ChatTemplateError("it has none")
    # What the engine puts before every text must not be in the text as well.
    added = tokenizer.decode(tokenizer("").input_ids)

    def render(messages: Sequence[Message], answer: bool) -> str:
        text: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=answer
        )
        return text.removeprefix(added)

    return render
