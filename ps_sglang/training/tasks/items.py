"""What a task is: fixed items for training and testing, and a way to tell right from wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from ps_sglang.errors import UsageError

Message = dict[str, str]
"""One chat message: `role` and `content`."""

Split = Literal["train", "dev", "test"]


@dataclass(frozen=True)
class Item:
    """One question of a task.

    `messages` is the prompt, `answer` what the trainer learns, `check` what scoring needs: plain
    JSON. `id` is unique within a task.
    """

    id: str
    messages: tuple[Message, ...]
    answer: str
    check: Mapping[str, Any]

    def to_row(self) -> dict[str, Any]:
        """As the trainer reads it: a conversation that ends with the answer."""
        answer = {"role": "assistant", "content": self.answer}
        return {"id": self.id, "messages": [*self.messages, answer], "check": self.check}


class Task(Protocol):
    """A source of items with its scoring.

    `max_new_tokens` is room enough for a right answer. A task that is not `trained` is only ever
    reported: it has a test split and no other.
    """

    name: str
    max_new_tokens: int
    trained: bool

    def items(self, split: Split, count: int | None = None) -> list[Item]:
        """The first `count` items of a split, or all; the same ones on every machine.

        Raises UsageError for a split or count that cannot be had, MissingPackageError where the
        data comes out of a package that is not installed.
        """
        ...

    def passed(self, items: Sequence[Item], answers: Sequence[str]) -> list[bool]:
        """Whether each answer is right. An answer can be anything, none raises."""
        ...


T = TypeVar("T")


def first(items: Sequence[T], count: int | None, what: str) -> list[T]:
    """The first `count` of `items`, or all for None; `what` names them in the UsageError."""
    if count is not None and not 1 <= count <= len(items):
        raise UsageError(f"{what} has {len(items)} items; {count} cannot be had of them")
    return list(items[:count])


def test_only(name: str, split: Split) -> None:
    """Raises UsageError unless `split` is the test split."""
    if split != "test":
        raise UsageError(f"{name} is only reported, never trained on: no {split} split, only test")
