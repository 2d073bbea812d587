"""Small checks of one value: each says which field, what it must be, and what it is.

They raise ValueError, which SGLang answers with status 400 on every route.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

Check = Callable[[str, Any], None]

INT32: Final = 2**31 - 1
INT64: Final = 2**63 - 1
FLOAT32: Final = 3.4028234663852886e38
"""The largest number that the engine's float32 tensors hold."""


def refuse(field: str, expected: str, value: Any) -> NoReturn:
    """Raise ValueError, the one error of this package."""
    raise ValueError(f"`{field}` must be {expected}, not {reprlib.repr(value)}.")


@dataclass(frozen=True)
class Integer:
    """An integer from `least` to `most`, both included."""

    least: int
    most: int

    def __call__(self, field: str, value: Any) -> None:
        # A float would pass comparisons and fail where a tensor or a slice is made of it.
        if type(value) is not int or not self.least <= value <= self.most:
            refuse(field, f"an integer from {self.least} to {self.most}", value)


@dataclass(frozen=True)
class Number:
    """A finite number from `least` to `most`; without `least` itself if `above`."""

    least: float
    most: float
    above: bool = False

    def __call__(self, field: str, value: Any) -> None:
        number = type(value) in (int, float)
        # Not a number compares as false.
        if (
            not number
            or not self.least <= value <= self.most
            or (self.above and value == self.least)
        ):
            start = f"above {self.least:g}" if self.above else f"from {self.least:g}"
            refuse(field, f"a number {start} to {self.most:g}", value)


@dataclass(frozen=True)
class Text:
    """A text of `least` to `most` characters that UTF-8 can write."""

    most: int
    least: int = 0

    def __call__(self, field: str, value: Any) -> None:
        if not isinstance(value, str) or not self.least <= len(value) <= self.most:
            refuse(field, f"a text of {self.least} to {self.most} characters", value)
        require_utf8(field, value)


@dataclass(frozen=True)
class OneOf:
    """One of a few values."""

    values: tuple[Any, ...]

    def __call__(self, field: str, value: Any) -> None:
        if not any(value == allowed and type(value) is type(allowed) for allowed in self.values):
            refuse(field, " or ".join(map(repr, self.values)), value)


@dataclass(frozen=True)
class Optional:
    """Nothing, or what another check allows."""

    check: Check

    def __call__(self, field: str, value: Any) -> None:
        if value is not None:
            self.check(field, value)


@dataclass(frozen=True)
class ListOf:
    """A list of up to `most` items; one item by itself if `bare` is allowed."""

    check: Check
    most: int
    bare: bool = False

    def __call__(self, field: str, value: Any) -> None:
        if self.bare and not isinstance(value, list):
            self.check(field, value)
            return
        if not isinstance(value, list | set | tuple) or len(value) > self.most:
            refuse(field, f"a list of up to {self.most} items", value)
        for item in value:
            self.check(field, item)


BOOLEAN: Final = OneOf((True, False))


def require_utf8(field: str, value: str) -> None:
    """Refuse a text with half a surrogate pair, which no tokenizer, hash or message takes.

    Raises ValueError if it has one.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        surrogate = f"U+{ord(value[error.start]):04X} at character {error.start}"
        raise ValueError(
            f"`{field}` has {surrogate}, half of a surrogate pair: it is no text."
        ) from None
