"""The 64 requests."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from ps_sglang.verify.prompts import AT_ONCE, Script, script

LONGEST = 600


def encode(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


def decoders_of(made: Script) -> list[str]:
    turns = [decoder for talk in made.conversations for decoder, _ in talk.turns]
    singles = [ask.decoder for ask in made.singles]
    return [
        *singles,
        *singles,
        *(a.decoder for a in made.crowd),
        *turns,
        *(chat.decoder for chat in made.chats),
    ]


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c"), ("a", "b", "c", "d")])
def test_64_requests_spread_over_all_decoders(names: tuple[str, ...]) -> None:
    count = Counter(decoders_of(script(names, encode, LONGEST)))
    assert count.total() == 64
    assert set(count) == set(names)
    assert max(count.values()) - min(count.values()) <= 4


def test_two_runs_ask_the_same() -> None:
    assert script(("a", "b"), encode, LONGEST) == script(("a", "b"), encode, LONGEST)


def test_prompts_are_short_and_long_but_not_too_long() -> None:
    made = script(("a", "b", "c"), encode, LONGEST)
    lengths = [len(ask.prompt) for ask in (*made.singles, *made.crowd)]
    assert min(lengths) == 1
    assert max(lengths) == LONGEST


def test_a_crowd_shares_prefixes_across_decoders() -> None:
    made = script(("a", "b", "c"), encode, LONGEST)
    beginnings: dict[tuple[int, ...], set[str]] = {}
    for ask in made.crowd:
        beginnings.setdefault(ask.prompt[:40], set()).add(ask.decoder)
    assert len(made.crowd) == 2 * AT_ONCE
    assert len(beginnings) < len(made.crowd)
    assert all(len(speakers) > 1 for speakers in beginnings.values())


def test_each_turn_of_a_conversation_has_another_decoder() -> None:
    for talk in script(("a", "b", "c"), encode, LONGEST).conversations:
        speakers = [decoder for decoder, _ in talk.turns]
        assert set(speakers) == {"a", "b", "c"}
        assert all(one != other for one, other in itertools.pairwise(speakers))
