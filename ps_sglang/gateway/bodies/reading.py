"""A request's bytes as a JSON object, or an error that names the place that spoils it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from ps_sglang.gateway.bodies.checks import Body, kind
from ps_sglang.gateway.errors import BadRequest

MOST_LEVELS = 64
"""How deep a body may be nested: engines go through schemas and messages by recursion."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
# What `json` reads and JSON has not, or no number of 64 bits is.
_ODD_NUMBER = re.compile(rb"NaN|Infinity|[eE]\+?\d{3}")


def decode_body(content: bytes) -> Body:
    """The request's JSON object; raises BadRequest if it is anything else."""
    try:
        body = msgspec.json.decode(content)
    except RecursionError as error:
        raise BadRequest("The body's JSON is nested too deeply.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _name_spoiled(content)
        raise BadRequest(f"The body is not valid JSON in UTF-8: {error}.") from error
    if not isinstance(body, dict):
        raise BadRequest(f"The body must be a JSON object, not {kind(body)}.")
    brackets = content.count(b"[") + content.count(b"{")
    if brackets > MOST_LEVELS and deeper_than(body, MOST_LEVELS):
        raise BadRequest(
            f"The body's JSON is nested too deeply: at most {MOST_LEVELS} levels are allowed."
        )
    return body


def deeper_than(value: Any, most: int) -> bool:
    """Whether lists and objects are nested in more than `most` levels."""
    level = [value]
    for _ in range(most):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _name_spoiled(content: bytes) -> None:
    """Raise the error that names a text with half a character, or a number that is none."""
    surrogates = _SURROGATE_ESCAPE.search(content)
    if not surrogates and not _ODD_NUMBER.search(content):
        return
    try:
        body = json.loads(content)
        places = list(_places(body, _is_spoiled))
    except (ValueError, RecursionError):
        return
    if not places or not isinstance(body, dict):
        return
    place, value = places[0]
    if isinstance(value, str):
        problem = (
            "has half of a surrogate pair (\\ud800 to \\udfff), which is no character: send both "
            "halves, the character itself, or leave it out"
        )
    else:
        problem = f"is {value}, but numbers must be finite"
    field = re.split(r"[.\[]", place, maxsplit=1)[0]
    raise BadRequest(f"The body's `{place}` {problem}.", param=field)


def _is_spoiled(value: Any) -> bool:
    if isinstance(value, str):
        return _SURROGATE.search(value) is not None
    return isinstance(value, float) and not math.isfinite(value)


def _places(
    value: Any, matches: Callable[[Any], bool], name: str = ""
) -> Iterator[tuple[str, Any]]:
    """Where in a JSON value the wanted texts and numbers are; a key counts for its object."""
    if isinstance(value, dict):
        for key, inner in value.items():
            # A key that is spoiled itself is shown by its escapes.
            shown = key.encode("ascii", "backslashreplace").decode() if matches(key) else key
            place = f"{name}.{shown}" if name else shown
            if matches(key):
                yield place, key
            yield from _places(inner, matches, place)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _places(inner, matches, f"{name}[{number}]")
    elif matches(value):
        yield name, value
