"""Further questions made from one: other values in it, other functions beside its own.

What a decoder has to learn of function calling is to read: the function out of the list, the
arguments out of the question. Some hundred questions can also be learned by heart; their variants
cannot.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

_NUMBER: Final = re.compile(r"(?<![\w.,])-?\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")
_SHORTEST_WORD: Final = 3

Calls = Sequence[Mapping[str, Any]]
"""What is called: `{function: arguments}` each."""


class Words:
    """What arguments of a name are called in the questions of some items."""

    def __init__(self, questions: Sequence[tuple[str, Calls]]) -> None:
        """`questions` each come with their right calls."""
        self._words: dict[str, list[str]] = {}
        for question, calls in questions:
            for name, value in _values(calls):
                if _is_name(value) and re.search(_exactly(value), question):
                    words = self._words.setdefault(name, [])
                    if value not in words:
                        words.append(value)

    def other(self, name: str, word: str, source: random.Random) -> str:
        """Another word for an argument of that name, or the same where no other is known."""
        others = [candidate for candidate in self._words.get(name, ()) if candidate != word]
        return source.choice(others) if others else word


def with_other_values(
    question: str, calls: Calls, fixed: set[str], words: Words, source: random.Random
) -> tuple[str, dict[Any, Any]]:
    """The question with other values, and what became of which.

    A value is exchanged if the question says it as the calls do and it is not among `fixed`: a
    name for another that an argument of this name had, a number for one of as many digits.
    """
    became: dict[Any, Any] = {}
    for name, value in _values(calls):
        if isinstance(value, bool) or str(value) in fixed or value in became:
            continue
        if _is_name(value):
            new: Any = words.other(name, value, source)
            changed = re.sub(_exactly(value), new.replace("\\", r"\\"), question)
        elif isinstance(value, int | float):
            new = _other_number(value, source)
            changed = _with_number(question, value, new)
        else:
            continue
        # Two equal values in one question could not be told apart afterwards.
        is_new = new != value and new not in became.values() and not _says(question, new)
        if changed != question and is_new:
            question, became[value] = changed, new
    return question, became


def exchanged(value: Any, became: Mapping[Any, Any]) -> Any:
    """A value, or the values in it, as what they became."""
    if isinstance(value, dict):
        return {key: exchanged(element, became) for key, element in value.items()}
    if isinstance(value, list):
        return [exchanged(element, became) for element in value]
    if isinstance(value, bool) or value not in became:
        return value
    return type(value)(became[value])


def fixed_values(functions: Any) -> set[str]:
    """All values that the descriptions of functions enumerate or have as a default, as text."""
    if isinstance(functions, list):
        return set().union(*map(fixed_values, functions))
    if not isinstance(functions, dict):
        return set()
    listed = functions.get("enum")
    fixed = {str(value) for value in listed} if isinstance(listed, list) else set()
    if "default" in functions:
        fixed.add(str(functions["default"]))
    return fixed.union(*map(fixed_values, functions.values()))


def with_others(
    functions: Sequence[dict[str, Any]],
    others: Sequence[dict[str, Any]],
    most: int,
    source: random.Random,
) -> list[dict[str, Any]]:
    """The functions in some order, with some of the others among them: `most` in all."""
    names = {function["name"] for function in functions}
    strangers = [function for function in others if function["name"] not in names]
    added = source.randint(0, max(most - len(functions), 0))
    listed = [*functions, *source.sample(strangers, added)]
    source.shuffle(listed)
    return listed


def _values(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values in calls, each with the name of its argument."""
    if isinstance(value, Mapping):
        for key, element in value.items():
            yield from _values(element, key)
    elif isinstance(value, list | tuple):
        for element in value:
            yield from _values(element, name)
    else:
        yield name, value


def _is_name(value: Any) -> bool:
    """Whether it is a name or the like. Other words have to fit into their sentence."""
    return isinstance(value, str) and len(value) >= _SHORTEST_WORD and not value.islower()


def _exactly(word: str) -> str:
    return rf"(?<!\w){re.escape(word)}(?!\w)"


def _says(question: str, value: Any) -> bool:
    if isinstance(value, str):
        return re.search(_exactly(value), question) is not None
    return _with_number(question, value, 0) != question


def _with_number(question: str, value: float, new: float) -> str:
    def written(match: re.Match[str]) -> str:
        text = match.group()
        if float(text.replace(",", "")) != value:
            return text
        return f"{new:,}" if "," in text else f"{new}"

    return _NUMBER.sub(written, question)


def _other_number(value: float, source: random.Random) -> float:
    """Of the same type and sign, with as many digits and decimals; zero stays."""
    whole, point, decimals = repr(abs(value)).partition(".")
    if "e" in whole + decimals or not value:
        return value
    new = value
    while new == value:
        parts = (_other_digits(whole, source), point, _other_digits(decimals, source))
        new = type(value)("".join(parts)) * (-1 if value < 0 else 1)
    return new


def _other_digits(digits: str, source: random.Random) -> str:
    return digits if digits in ("", "0") else "".join(source.choices("123456789", k=len(digits)))
