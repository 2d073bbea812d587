"""Checking the settings of a training or an evaluation, all at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from ps_sglang.errors import UsageError

Ranges = tuple[tuple[tuple[str, ...], str, Callable[[float], bool]], ...]
"""Names of fields, what their values must be in words, and the test of it."""


def unfit_values(
    settings: Any, ranges: Ranges, choices: Mapping[str, tuple[Any, ...]]
) -> list[str]:
    """A line for each field of the dataclass that is out of its range or none of its choices."""
    wrong = [
        f"{_flag(name)} {getattr(settings, name)}: must be {requirement}"
        for names, requirement, holds in ranges
        for name in names
        if not holds(getattr(settings, name))
    ]
    for field in fields(settings):
        value, allowed = getattr(settings, field.name), choices.get(field.name)
        if allowed and value not in allowed:
            wrong.append(f"{_flag(field.name)} {value}: one of {', '.join(allowed)}")
    return wrong


def refuse(wrong: Sequence[str]) -> None:
    """Raises UsageError with every line of `wrong`, if there are any."""
    if wrong:
        raise UsageError("\n  ".join(["wrong settings:", *wrong] if wrong[1:] else wrong))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
