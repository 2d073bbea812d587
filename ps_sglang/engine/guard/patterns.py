"""`stop_regex`: patterns that compile in bounded memory, and matching in bounded time.

SGLang matches with Python's `re` in the scheduler's thread, after every token, on the whole
output: a pattern that backtracks holds every request of the worker. Here the package `regex`
matches, which takes the same patterns and gives up after a time. A linear-time engine (RE2) would
not need one, but reads `$`, `\\w` and `\\b` differently and lacks look-around.
"""

from __future__ import annotations

import re
import time
from functools import lru_cache
from typing import Any, Final

import regex

from ps_sglang.engine.compat.srt import sre_parse
from ps_sglang.engine.guard.checks import Text

_MOST_BYTES: Final = 256  # as SGLang's
_MOST_STATES: Final = 10_000
_REPEATS: Final = (
    sre_parse.MAX_REPEAT,
    sre_parse.MIN_REPEAT,
    sre_parse.POSSESSIVE_REPEAT,
)
# The scheduler stands still for so long at most, and on average for so long a token.
_ONE_SEARCH_S: Final = 0.05
_ALLOWANCE_S: Final = 0.1
_PER_TOKEN_S: Final = 0.001


class TooSlowError(Exception):
    """A request's patterns took more time than its tokens allow."""


def check(field: str, value: Any) -> None:
    """Refuse a pattern that does not compile, or that is too large to.

    Raises ValueError, which names the pattern and what is wrong with it.
    """
    Text(_MOST_BYTES)(field, value)
    try:
        size = states(value)
        if size <= _MOST_STATES:
            _compile(value)
            return
    except (re.error, regex.error, OverflowError, RecursionError, ValueError) as error:
        raise ValueError(f"`{field}` {value!r} is not a regular expression: {error}.") from None
    raise ValueError(
        f"`{field}` {value!r} repeats to {size} states; it must need {_MOST_STATES} at most."
    )


def states(pattern: str) -> int:
    """About how large `pattern` is with its counted repeats written out."""
    return _states(sre_parse.parse(pattern))


def _states(node: Any) -> int:
    """Of a parsed pattern, or of anything in one that may hold parsed patterns."""
    if isinstance(node, sre_parse.SubPattern):
        return sum(map(_states, node))
    # By identity: a group's number may equal a code.
    if isinstance(node, tuple) and any(node[:1] and node[0] is code for code in _REPEATS):
        least, most, repeated = node[1]
        times = least if most == sre_parse.MAXREPEAT else most
        return max(1, int(times)) * _states(repeated)
    if isinstance(node, tuple | list):
        return sum(map(_states, node))
    return 1


@lru_cache(maxsize=1024)
def _compile(pattern: str) -> Any:
    return regex.compile(pattern)


class Budget:
    """The time that one request's patterns have taken, in seconds."""

    def __init__(self) -> None:
        self.spent = 0.0

    def search(self, pattern: str, text: str, tokens: int) -> bool:
        """Whether `pattern` is found in `text`, of a request with so many output `tokens`.

        Raises TooSlowError if this search takes more than 50 ms, or all of them together have taken
        more than 0.1 s and 1 ms a token.
        """
        left = _ALLOWANCE_S + _PER_TOKEN_S * tokens - self.spent
        start = time.thread_time()
        try:
            if left <= 0:
                raise TimeoutError
            return _compile(pattern).search(text, timeout=min(left, _ONE_SEARCH_S)) is not None
        except TimeoutError:
            raise TooSlowError(
                f"`stop_regex` {pattern!r} takes too long to match: a search may take "
                f"{_ONE_SEARCH_S * 1000:g} ms, and all of a request {_ALLOWANCE_S:g} s and "
                f"{_PER_TOKEN_S * 1000:g} ms a token. Write it without overlapping repeats."
            ) from None
        finally:
            self.spent += time.thread_time() - start
