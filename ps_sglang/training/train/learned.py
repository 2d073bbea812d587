"""Marks for what shall not be learned, as several tools write them: honoured where they are plain,
refused where they are not, never passed over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

# 0 or false: not learned. OpenAI writes weight, axolotl train and training, ms-swift loss.
_MARKS: Final = (
    *("weight", "loss_weight", "train", "training", "trainable", "learn"),
    *("loss", "loss_mask"),
)
# Marks of parts of an answer, of tokens, or of which nobody can tell which way they mean it.
_OTHERS: Final = (
    *("mask", "masked", "masks", "ignore", "ignore_loss", "no_loss"),
    *("train_detail", "training_detail", "train_on_turn", "weights", "token_weights"),
    *("assistant_mask", "assistant_masks", "completion_mask", "labels", "train_mask"),
)
ALL_MARKS: Final = frozenset((*_MARKS, *_OTHERS))


def is_learned(marked: dict[str, Any]) -> bool:
    """Whether the message or row `marked`, which has no `mark_problems`, is to be learned."""
    return all(marked[mark] is None or marked[mark] for mark in _MARKS if mark in marked)


def mark_problems(marked: dict[str, Any], *, answers: bool = True) -> Iterator[str]:
    """What is not plain about the marks of a message or row: the field, and why.

    `answers`: it is an assistant's message, or a row. No other message is ever learned.
    """
    values = {mark: marked[mark] for mark in _MARKS if marked.get(mark) is not None}
    for mark, value in values.items():
        if not isinstance(value, int | float) or value not in (0, 1):
            yield (
                f"{mark} must be 0 or 1, false or true (learn an answer or not), not "
                f"{value!r:.60}; write one of them, or leave it out"
            )
        elif value and not answers:
            yield f"{mark} is {value!r}, but only an assistant's messages are learned; leave it out"
    if len({bool(value) for value in values.values()}) > 1:
        yield f"{' and '.join(values)} contradict each other; leave all but one out"
    for mark in _OTHERS:
        if marked.get(mark) is not None:
            yield f"{mark} is a mark that cannot be honoured; write weight: 0 or 1 instead"
