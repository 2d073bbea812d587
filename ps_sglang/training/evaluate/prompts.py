"""From a task's items to the token sequences that a server would make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ps_sglang.contract.files import digest
from ps_sglang.errors import UsageError
from ps_sglang.training.evaluate.generate import Tokens
from ps_sglang.training.evaluate.settings import EvaluateSettings
from ps_sglang.training.tasks import Item, Message, Task
from ps_sglang.training.train.decoder import Tokenizing


@dataclass(frozen=True)
class Question:
    """An item as it is asked: `messages` has the examples of a few-shot prompt in front."""

    item: Item
    messages: tuple[Message, ...]


def questions(task: Task, settings: EvaluateSettings) -> list[Question]:
    """The items that `settings` asks for. Raises UsageError for items that cannot be had."""
    shots = task.items("train", settings.few_shot) if settings.few_shot else []
    items = task.items(settings.split, settings.count or None)
    return [Question(item, _with_examples(item, shots)) for item in items]


def _with_examples(item: Item, shots: Sequence[Item]) -> tuple[Message, ...]:
    system = [message for message in item.messages if message["role"] == "system"]
    rest = [message for message in item.messages if message["role"] != "system"]
    examples = [
        message
        for shot in shots
        for message in (*shot.messages, {"role": "assistant", "content": shot.answer})
        if message["role"] != "system"
    ]
    return (*system, *examples, *rest)


def data_digest(asked: Sequence[Question]) -> str:
    """`eval1:` and the digest of all that is asked and of what scoring reads."""
    return digest("eval1", [[q.item.id, q.messages, dict(q.item.check)] for q in asked])


def encode(asked: Sequence[Question], tokenizing: Tokenizing, task: Task) -> list[Tokens]:
    """The prompts as token ids, by the chat template that a server uses.

    Raises UsageError naming the items whose prompt and answer do not fit into the context.
    """
    prompts = [_render(tokenizing.tokenizer, question) for question in asked]
    most = tokenizing.context - task.max_new_tokens
    if over := [(q.item.id, len(p)) for q, p in zip(asked, prompts, strict=True) if len(p) > most]:
        name, tokens = over[0]
        raise UsageError(
            f"{len(over)} prompts of {task.name} are too long, the first of them {name} with "
            f"{tokens} tokens: the context of {tokenizing.context} leaves {most} beside an answer "
            f"of {task.max_new_tokens}; give a lower --few-shot, or a base with a longer context"
        )
    return prompts


def _render(tokenizer: Any, question: Question) -> Tokens:
    try:
        encoded = tokenizer.apply_chat_template(
            list(question.messages), add_generation_prompt=True, return_dict=True
        )
    # Templates raise what they like; Jinja's own errors are of many kinds.
    except Exception as error:
        raise UsageError(f"the chat template refuses item {question.item.id}: {error}") from error
    return tuple(encoded["input_ids"])
