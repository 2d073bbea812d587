"""Bounds of a grammar's source, and of the time that its compilation and each token may take.

xgrammar compiles in a thread and lets go of the interpreter, so a slow grammar does not hold the
scheduler; but it holds the machine. Its matching runs in the scheduler's thread, and an ambiguous
grammar takes longer with every token.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from ps_sglang.engine.guard.checks import Text, refuse

MOST_CHARACTERS: Final = 65_536
_DEPTH: Final = 64
_REPEATS: Final = 20_000
_REPEAT: Final = re.compile(r"\{(\d*)(?:,(\d*))?\}")
_OPENING, _CLOSING = "([{", ")]}"
# What may hold a bracket that opens nothing: an escaped character, a class, a quoted text.
_LITERAL: Final = re.compile(r'\\.|\[(?:\\.|[^\]\\])*\]|"(?:\\.|[^"\\\n])*"', re.DOTALL)


def regex(field: str, value: Any) -> None:
    """Refuse a regular expression that is too long, too deep or repeats too much (ValueError)."""
    Text(MOST_CHARACTERS)(field, value)
    _brackets(field, value)
    _repeats(field, value)


def ebnf(field: str, value: Any) -> None:
    """Refuse an EBNF grammar for the same reasons (ValueError)."""
    regex(field, value)


def json_schema(field: str, value: Any) -> None:
    """Refuse a schema or structural tag that is no JSON, or is too deep (ValueError)."""
    Text(MOST_CHARACTERS)(field, value)
    if value == "$$ANY$$":  # SGLang's name for any JSON
        return
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else error
        raise ValueError(f"`{field}` is no JSON: {reason}.") from None
    if not isinstance(parsed, dict | bool):
        refuse(field, "a JSON object", parsed)
    parts: list[tuple[Any, int]] = [(parsed, 1)]
    repeats = 0
    while parts:
        part, depth = parts.pop()
        if depth > _DEPTH:
            raise ValueError(f"`{field}` is nested more than {_DEPTH} deep.")
        if isinstance(part, dict):
            patterns = [part.get(name) for name in ("pattern", "regex")]
            repeats += sum(_repeated(text) for text in patterns if isinstance(text, str))
            parts += [(item, depth + 1) for item in part.values()]
        elif isinstance(part, list):
            parts += [(item, depth + 1) for item in part]
    _bounded(field, repeats)


def _brackets(field: str, text: str) -> None:
    depth = 0
    for character in _LITERAL.sub("", text):
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth > _DEPTH:
            raise ValueError(f"`{field}` is nested more than {_DEPTH} deep.")


def _repeats(field: str, text: str) -> None:
    _bounded(field, _repeated(text))


def _repeated(text: str) -> int:
    numbers = (match[2] or match[1] for match in _REPEAT.finditer(text))
    return sum(int(number[:10]) for number in numbers if number)


def _bounded(field: str, repeats: int) -> None:
    if repeats > _REPEATS:
        raise ValueError(
            f"`{field}` repeats {repeats} times, by the numbers in its braces; "
            f"{_REPEATS} times at most."
        )
