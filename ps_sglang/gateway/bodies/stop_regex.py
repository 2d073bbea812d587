"""Which regular expressions may stop an answer.

Engines search the end of the answer with Python's `re` after every token, on the thread that serves
all requests. `re` backtracks, so an expression such as `(a+)+b` takes years on thirty letters. An
expression is refused here unless the work of one search is bounded. From one place of the text a
search tries at most as many ways as the parts of the expression can match in, taken together, each
no longer than the longest text that can match. SGLang keeps as many tokens as that text may have:

- tokens times ways times length must be at most MOST_STEPS;
- one repeat of a single character may be without an end (`*`, `+`, `{2,}`), if nothing comes after
  it, so that it never gives a character back, or if the character before it can be none of its own,
  so that searches from two places never go through the same text. SGLang then keeps the whole
  answer, of which a search may take MOST_STEPS_A_PLACE steps for each character, and no more.
"""

from __future__ import annotations

import re
from re import _compiler, _constants, _parser  # type: ignore[attr-defined]
from typing import Any

from ps_sglang.gateway.bodies.checks import Limits, refuse
from ps_sglang.gateway.errors import BadRequest

MOST_BYTES = 256
"""SGLang's own bound."""
MOST_STEPS = 1_000_000
MOST_STEPS_A_PLACE = 256

_REPEATS = (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT)
_SINGLE = (_constants.LITERAL, _constants.NOT_LITERAL, _constants.IN, _constants.ANY)
_ASSERTIONS = (_constants.ASSERT, _constants.ASSERT_NOT)
# For an expression with any other part SGLang keeps the whole answer.
_COUNTED = (
    _constants.LITERAL,
    _constants.IN,
    _constants.ANY,
    _constants.AT,
    _constants.SUBPATTERN,
    _constants.BRANCH,
    _constants.MAX_REPEAT,
    _constants.MIN_REPEAT,
)
_MOST_COUNTED = 2**64


class _Unbounded(Exception):
    """A search could take too long; the message says why."""


def check_stop_regex(value: Any, name: str, limits: Limits) -> Any:
    """A text that is a regular expression whose search takes bounded work."""
    if not isinstance(value, str):
        refuse(name, value, "a regular expression, as a text")
    size = len(value.encode())
    if size > MOST_BYTES:
        raise BadRequest(f"`{name}` must have at most {MOST_BYTES} bytes, not {size}.", param=name)
    try:
        re.compile(value)
        _check_work(_parser.parse(value), limits.context_length)
    except _Unbounded as error:
        raise BadRequest(
            f"`{name}` is {value!r}, {error}. Give repeats an end, such as {{0,20}} instead of *, "
            "make them few and short, and do not nest them.",
            param=name,
        ) from error
    except (re.error, RecursionError, OverflowError) as error:
        raise BadRequest(
            f"`{name}` is {value!r}, which is no regular expression of Python's: {error}.",
            param=name,
        ) from error
    return value


def _check_work(pattern: Any, context_length: int) -> None:
    """Raise _Unbounded if one search could take too long."""
    parts = list(pattern)
    endless = [place for place, part in enumerate(parts) if _is_endless(part)]
    if len(endless) > 1:
        raise _Unbounded("in which two repeats have no end")
    if endless:
        (place,) = endless
        before = parts[place - 1] if place else None
        if place + 1 < len(parts) and not _is_apart(before, parts[place], pattern):
            raise _Unbounded(
                "in which something follows a repeat without an end, and the character before it "
                "could be one of its own"
            )
        parts.pop(place)
    around = [value[1] for operator, value in parts if operator in _ASSERTIONS]
    parts = [part for part in parts if part[0] not in _ASSERTIONS]
    length = max(1, _width(_parser.SubPattern(pattern.state, parts)) + sum(map(_width, around)))
    ways = _ways_of([*parts, *(part for one in around for part in one)])
    steps = min(ways * length, _MOST_COUNTED)
    most = MOST_STEPS_A_PLACE
    if not endless and all(map(_is_counted, pattern)):
        steps, most = steps * min(length + 1, context_length), MOST_STEPS
    if steps > most:
        raise _Unbounded(f"for which a search could take {steps:.2g} steps, but may take {most}")


def _width(pattern: Any) -> int:
    """The longest text that can match, in characters."""
    return min(int(pattern.getwidth()[1]), _MOST_COUNTED)


def _is_counted(part: Any) -> bool:
    operator, value = part
    if operator is _constants.BRANCH:
        return all(_is_counted(one) for branch in value[1] for one in branch)
    if operator is _constants.SUBPATTERN or operator in _REPEATS:
        return operator in _COUNTED and all(map(_is_counted, value[-1]))
    return operator in _COUNTED


def _is_endless(part: Any) -> bool:
    operator, value = part
    if operator not in _REPEATS or value[1] != _constants.MAXREPEAT:
        return False
    inner = list(value[2])
    return len(inner) == 1 and inner[0][0] in _SINGLE


def _ways_of(parts: Any) -> int:
    """In how many ways a sequence can match from one place, at most."""
    ways = 1
    for part in parts:
        ways = min(ways * _ways(*part), _MOST_COUNTED)
    return ways


def _ways(operator: Any, value: Any) -> int:
    if operator in _SINGLE or operator is _constants.AT or operator is _constants.FAILURE:
        return 1
    if operator in _REPEATS:
        return _repeat_ways(*value)
    if operator is _constants.SUBPATTERN:
        return _ways_of(value[3])
    if operator is _constants.ATOMIC_GROUP:
        return _ways_of(value)
    if operator is _constants.BRANCH:
        return min(sum(map(_ways_of, value[1])), _MOST_COUNTED)
    if operator in _ASSERTIONS:
        raise _Unbounded("in which a group looks around")
    raise _Unbounded("which refers to what a group has matched")


def _repeat_ways(least: int, most: int, inner: Any) -> int:
    if most == _constants.MAXREPEAT:
        raise _Unbounded("in which a repeat without an end is inside a group, or repeats one")
    once = _ways_of(inner)
    if once == 1:
        return int(most - least + 1)
    # Every round may match in each of its ways: once**least + ... + once**most.
    rounds, ways = 0, 0
    while rounds <= most and ways < _MOST_COUNTED:
        ways += once**rounds if rounds >= least else 0
        if once**rounds >= _MOST_COUNTED:
            return _MOST_COUNTED
        rounds += 1
    return min(ways, _MOST_COUNTED)


def _is_apart(before: Any, repeat: Any, pattern: Any) -> bool:
    """Whether the character before a repeat is known, and none that the repeat takes."""
    characters = None if before is None else _characters(before)
    if characters is None:
        return False
    inner = _parser.SubPattern(pattern.state, list(repeat[1][2]))
    takes = _compiler.compile(inner, pattern.state.flags)
    return not any(
        takes.match(one)
        for character in characters
        for one in (character, character.lower(), character.upper())
    )


def _characters(part: Any) -> list[str] | None:
    """The characters that a single-character part can match, if they are few."""
    operator, value = part
    if operator is _constants.LITERAL:
        return [chr(value)]
    if operator is not _constants.IN:
        return None
    found: list[str] = []
    for kind, one in value:
        if kind is _constants.LITERAL:
            found.append(chr(one))
        elif kind is _constants.RANGE and one[1] - one[0] < 256:
            found += map(chr, range(one[0], one[1] + 1))
        else:
            return None
    return found
