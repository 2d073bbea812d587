"""Small checks of single values, from which the tables of fields are made.

A check takes a value that was given (never null), the name under which the client knows it, and the
limits of the cluster. It returns the value as engines take it, or raises BadRequest with the name,
the value and the range.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from ps_sglang.gateway.bodies.schemas import describe, object_schema, schema_of
from ps_sglang.gateway.errors import BadRequest

Body = dict[str, Any]

FLOAT32_MAX = 3.4028234663852886e38
FLOAT32_TINY = 1.1754943508222875e-38
"""The smallest normal number of 32 bits: engines compute with these."""
INT32_MAX = 2**31 - 1
_LONGEST_SHOWN = 64
_KINDS = {bool: "a boolean", int: "a number", float: "a number", str: "a text", dict: "an object"}


@dataclass(frozen=True)
class Limits:
    """What engines can take: token ids below `vocabulary`, `context_length` tokens."""

    vocabulary: int
    context_length: int


Check = Callable[[Any, str, Limits], Any]
Table = Mapping[str, Check]


def checked(body: Body, table: Table, limits: Limits, prefix: str = "") -> Body:
    """The fields of `table` that were given, as engines take them; others are left out."""
    return {
        name: table[name](value, prefix + name, limits)
        for name, value in body.items()
        if value is not None and name in table
    }


def kind(value: object) -> str:
    """What a JSON value is, for messages."""
    if value is None:
        return "null or missing"
    if isinstance(value, list):
        return "a list of other things" if value else "an empty list"
    return _KINDS.get(type(value), type(value).__name__)


def shown(value: object) -> str:
    """A value as messages show it: numbers and short texts themselves, others by their kind."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        return repr(value if len(value) <= _LONGEST_SHOWN else value[:_LONGEST_SHOWN] + "…")
    return kind(value)


def refuse(name: str, value: object, requirement: str) -> NoReturn:
    """Raise the BadRequest that names the field, the value and what it must be."""
    raise BadRequest(f"`{name}` must be {requirement}, not {shown(value)}.", param=name)


def anything(value: Any, name: str, limits: Limits) -> Any:
    """A field that is checked elsewhere."""
    return value


@describe({"type": "boolean"})
def boolean(value: Any, name: str, limits: Limits) -> Any:
    """True or false."""
    if not isinstance(value, bool):
        raise BadRequest(f"`{name}` must be true or false, not {shown(value)}.", param=name)
    return value


def number(low: float, high: float, words: str = "", *, above: bool = False) -> Check:
    """A number from `low` (or above it) to `high`; `words` say the range where they say it better.

    A whole number becomes a float: engines send it on as one.
    """
    words = (
        words
        or f"{'above' if above else 'from'} {low:g} {'and at most' if above else 'to'} {high:g}"
    )

    @describe({"type": "number", "exclusiveMinimum" if above else "minimum": low, "maximum": high})
    def check(value: Any, name: str, limits: Limits) -> Any:
        if type(value) not in (int, float):
            refuse(name, value, f"a number {words}")
        if not (low < value if above else low <= value) or value > high:
            refuse(name, value, words)
        return float(value)

    return check


def integer(low: int, high: int, also: int | None = None) -> Check:
    """A whole number from `low` to `high`, or `also`.

    One that is written with a point counts too, as to SGLang and JSON schemas.
    """
    words = f"from {low} to {high}" + ("" if also is None else f", or {also}")
    within = {"type": "integer", "minimum": low, "maximum": high}

    @describe(within if also is None else {"anyOf": [within, {"const": also}]})
    def check(value: Any, name: str, limits: Limits) -> Any:
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int:
            raise BadRequest(f"`{name}` must be an integer, not {shown(value)}.", param=name)
        if not low <= value <= high and (also is None or value != also):
            refuse(name, value, words)
        return value

    return check


@describe({"type": "integer", "minimum": 0})
def rank(value: Any, name: str, limits: Limits) -> Any:
    """How many of the most likely tokens to report."""
    return integer(0, limits.vocabulary)(value, name, limits)


def text(longest: int | None = None, *, printable: bool = False) -> Check:
    """A text of at most `longest` characters."""

    @describe({"type": "string"} | ({} if longest is None else {"maxLength": longest}))
    def check(value: Any, name: str, limits: Limits) -> Any:
        if not isinstance(value, str):
            refuse(name, value, "a text")
        if longest is not None and len(value) > longest:
            raise BadRequest(
                f"`{name}` must have at most {longest} characters, not {len(value)}.", param=name
            )
        if printable and not value.isprintable():
            refuse(name, value, "a text without control characters")
        return value

    return check


def one_of(*choices: str) -> Check:
    """One of the given texts."""
    words = "one of " + ", ".join(map(repr, choices))

    @describe({"type": "string", "enum": list(choices)})
    def check(value: Any, name: str, limits: Limits) -> Any:
        if not isinstance(value, str) or value not in choices:
            refuse(name, value, words)
        return value

    return check


def texts(most: int, each: Check) -> Check:
    """A text, or a list of at most `most` texts."""
    listed = {"type": "array", "maxItems": most, "items": schema_of(each)}

    @describe({"anyOf": [schema_of(each), listed]})
    def check(value: Any, name: str, limits: Limits) -> Any:
        if isinstance(value, str):
            return each(value, name, limits)
        if not isinstance(value, list):
            refuse(name, value, "a text or a list of texts")
        if len(value) > most:
            raise BadRequest(
                f"`{name}` must have at most {most} texts, not {len(value)}.", param=name
            )
        for place, one in enumerate(value):
            _inside(each, one, name, place, limits)
        return value

    return check


@describe({"type": "object"})
def mapping(value: Any, name: str, limits: Limits) -> Any:
    """An object."""
    if not isinstance(value, dict):
        refuse(name, value, "an object")
    return value


def object_of(table: Table) -> Check:
    """An object; its fields that are in `table` are checked, the others are kept."""

    @describe(object_schema(table))
    def check(value: Any, name: str, limits: Limits) -> Any:
        mapping(value, name, limits)
        fields = checked(value, table, limits, f"{name}.")
        others = {key: one for key, one in value.items() if key not in table}
        return others | fields

    return check


@describe({"type": "array", "items": {"type": "integer", "minimum": 0}})
def token_ids(value: Any, name: str, limits: Limits) -> Any:
    """A list of token ids of the model, no more than it has."""
    if not isinstance(value, list) or not all(type(one) is int for one in value):
        refuse(name, value, "a list of token ids")
    if len(value) > limits.vocabulary:
        raise BadRequest(
            f"`{name}` has {len(value)} token ids, more than the model's {limits.vocabulary}.",
            param=name,
        )
    check_ids(value, name, limits)
    return value


def check_ids(ids: Collection[int], name: str, limits: Limits) -> None:
    """Refuse token ids that the model does not have: an engine would read beyond its weights."""
    if not ids or (min(ids) >= 0 and max(ids) < limits.vocabulary):
        return
    place, wrong = next(
        (place, one) for place, one in enumerate(ids) if not 0 <= one < limits.vocabulary
    )
    raise BadRequest(
        f"`{name}` has the token id {shown(wrong)} at place {place}, but the model's token ids are "
        f"from 0 to {limits.vocabulary - 1}.",
        param=name,
    )


def biases(most: float) -> Check:
    """An object from token ids, as texts, to what is added to their logits."""
    value_of = number(-most, most)

    @describe(
        {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": schema_of(value_of),
        }
    )
    def check(value: Any, name: str, limits: Limits) -> Any:
        mapping(value, name, limits)
        for key, one in value.items():
            if not (key.isascii() and key.isdecimal() and len(key) <= 10):
                raise BadRequest(
                    f"`{name}` must have token ids as its keys, not {shown(key)}.", param=name
                )
            check_ids([int(key)], name, limits)
            if one is None:
                refuse(f"{name}.{key}", one, "a number")
        return {key: value_of(one, f"{name}.{key}", limits) for key, one in value.items()}

    return check


def _inside(check: Check, value: Any, name: str, place: object, limits: Limits) -> None:
    """Check one value of a list; the error names its place, and as `param` the list."""
    try:
        check(value, f"{name}[{place}]", limits)
    except BadRequest as error:
        error.param = name
        raise
