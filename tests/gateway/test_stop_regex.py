"""Which expressions may stop an answer, and that those that may are searched for in no time."""

from __future__ import annotations

import re

import pytest

from ps_sglang.gateway.bodies.checks import Limits
from ps_sglang.gateway.bodies.stop_regex import check_stop_regex
from ps_sglang.gateway.errors import BadRequest

LIMITS = Limits(vocabulary=500, context_length=8192)
ALLOWED = [
    *("", "User:", "a{60}c", r"[.!?]\s*$", r"\n+", r"Final answer:\s*\n", r"\d{4}-\d\d-\d\d"),
    *("[a-z]{1,99}:", "(yes|no|maybe)[.]", "(?i)stop", r"(?<!a)b", "[^\n]*", r"\.[ ]{1,30}x"),
    *("(?:ab){3}", "x" * 256, "a?b?c?", r"\bend\b", "(?!a)b"),
]
REFUSED = [
    # What does not compile.
    *("(", "[", "*", "a**", "(?R)", "a{9999999999}", "[z-a]", "(?P<x>", "\\"),
    # What nests, overlaps or refers back.
    *("(a+)+b", "(a*)*", "(a|a)*b", "(a|aa)+$", "(.*)*x", "(a?){40}a{40}", "(a|a){30}b"),
    *(r"(a+)\1", "(?P<n>a)(?P=n)", "(a)?(?(1)b|c)", "((a{1,99}){1,99}){1,99}", "(?=(a+)+b)"),
    # What goes through the same text again from every place.
    *("a+b", r"\s*END", r"Answer: .*\n", "a*a*", r"a\s*b\s*c", "a++b", "(?>a+)b", "(?i)A[a]*b"),
    # What is too large.
    *("(ab){60000}", "(?=(?:ab){60000})x", ".{0,65535}x", "x" * 257, "é" * 129),
]


@pytest.mark.parametrize("pattern", ALLOWED)
def test_a_harmless_expression(pattern: str) -> None:
    assert check_stop_regex(pattern, "stop_regex", LIMITS) == pattern


@pytest.mark.parametrize("pattern", REFUSED)
def test_an_expression_that_could_take_forever(pattern: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_stop_regex(pattern, "stop_regex", LIMITS)
    assert caught.value.param == "stop_regex"
    assert "`stop_regex`" in caught.value.message


def test_the_message_says_how_to_mend_it() -> None:
    with pytest.raises(BadRequest, match=r"'\(a\+\)\+b'.*Give repeats an end, such as \{0,20\}"):
        check_stop_regex("(a+)+b", "stop_regex", LIMITS)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("pattern", ALLOWED)
def test_a_search_for_it_ends(pattern: str) -> None:
    """Texts made to fail late: a full context of what each part of the expressions takes."""
    for unit in ("a", "ab", "User", " ", "\n", "x", "1", ". ", "Final answer:", "a" * 50 + ":"):
        text = unit * (4 * LIMITS.context_length // len(unit))
        re.search(pattern, text)
        re.search(pattern, text + "!")
