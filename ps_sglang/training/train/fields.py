"""The values of a row by their paths: how a person reads them, and which no text can hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

# Deeper than any schema; recursive code of templates and libraries still follows it.
_DEEPEST: Final = 100


def field_name(path: Sequence[str | int], *, every: bool = False) -> str:
    """`messages[1].content` for a person; with `every`, `messages[].content`."""
    parts = [f"[{'' if every else p}]" if isinstance(p, int) else f".{p}" for p in path]
    return "".join(parts).removeprefix(".")


def unsound(value: Any, start: tuple[str | int, ...] = ()) -> Iterator[str]:
    """What no text can hold, or no template follow, with its path. Without recursion."""
    waiting = [(start, value)]
    while waiting:
        path, value = waiting.pop()
        if len(path) > _DEEPEST:
            yield f"{field_name(path[:2])} is nested more than {_DEEPEST} deep; shorten it"
            return
        if isinstance(value, dict):
            waiting += [((*path, key), inner) for key, inner in reversed(value.items())]
            waiting += [((*path, key), key) for key in value if not _is_text(key)]
        elif isinstance(value, list):
            waiting += [((*path, index), inner) for index, inner in enumerate(value)][::-1]
        elif isinstance(value, str) and not _is_text(value):
            wrong = next(char for char in value if not _is_text(char))
            what = "a NUL" if wrong == "\0" else f"a lone surrogate (\\u{ord(wrong):04x})"
            name = field_name(path).encode(errors="backslashreplace").decode()
            yield f"{name} holds {what}, which is no text; mend or leave out the row"


def _is_text(value: str) -> bool:
    return "\0" not in value and not any("\ud800" <= char <= "\udfff" for char in value)
