"""The base-token tree as people see it, on the index's own random tokens."""

from __future__ import annotations

import random

import pytest

from ps_sglang.gateway.index import branches
from ps_sglang.gateway.index.base_index import BaseIndex
from ps_sglang.gateway.index.branches import Branch, Usage, Use, grow
from ps_sglang.gateway.index.segment import LONGEST
from tests.gateway.index_model import TABLE, Worker, new_index

A, B, C, D = 0, 1, 5, 6


def text(tokens: list[int]) -> bytes:
    return b"".join(TABLE[one] for one in tokens)


def use(decoder: str, tokens: list[int], found: int, salt: str = "") -> Use:
    return Use(decoder, text(tokens), salt, found)


def all_of(branch: Branch) -> list[Branch]:
    listed = [branch]
    for one in listed:
        listed += one.branches
    return listed[1:]


@pytest.fixture
def workers() -> list[Worker]:
    return [Worker("p", 1), Worker("d", 1)]


@pytest.fixture
def index(workers: list[Worker]) -> BaseIndex:
    return new_index(workers, ["prefill", "decode"])


def test_what_has_no_fork_is_one_branch(index: BaseIndex, workers: list[Worker]) -> None:
    context = [A] * (2 * LONGEST + 9)
    workers[0].store(index, "", [*context, B, B])
    workers[0].store(index, "", [*context, C])
    workers[1].store(index, "", context[:300])
    trunk = grow(index.roots, [], 9)
    (first,) = trunk.branches
    assert (first.tokens, first.below, trunk.below) == (len(context), 3, len(context) + 3)
    assert first.held == {"p": len(context), "d": 300}
    assert first.excerpt == "a" * branches.EXCERPT_CHARACTERS
    assert [one.tokens for one in first.branches] == [2, 1]


def test_what_a_decoder_found_and_what_was_computed(
    index: BaseIndex, workers: list[Worker]
) -> None:
    workers[0].store(index, "", [A, A, A, B, B])
    workers[0].store(index, "", [A, A, A, C])
    uses = [
        use("x", [A, A, A, B, B], 0),
        use("x", [A, A, A, B, B, D], 5),
        use("y", [A, A, A, C, D], 3),
        use("z", [A, A], 1),
        use("z", [D, D], 0),
        use("z", [A, A, A], 3, salt="other"),
    ]
    (first,) = grow(index.roots, uses, 9).branches
    assert first.used == {"x": Usage(2, 3, 3), "y": Usage(1, 0, 3), "z": Usage(1, 1, 1)}
    assert [one.used for one in first.branches] == [{"x": Usage(2, 2, 2)}, {"y": Usage(1, 1, 0)}]


def test_the_largest_come_first_but_those_in_use_before(
    index: BaseIndex, workers: list[Worker]
) -> None:
    sizes = {A: 3, B: 9, C: 5, D: 1}
    for first, size in sizes.items():
        workers[0].store(index, "", [first] * size)
    trunk = grow(index.roots, [use("x", [D], 0)], 3)
    assert [one.tokens for one in trunk.branches] == [1, 9, 5]
    assert (trunk.hidden, trunk.below) == (1, 18)


def test_equal_text_in_other_tokens(index: BaseIndex, workers: list[Worker]) -> None:
    """A text leads to the tokens that hold most of it."""
    workers[0].store(index, "", [2, B])  # "ab" and "b"
    workers[0].store(index, "", [A, B, B, B])
    used = [one for one in all_of(grow(index.roots, [use("x", [A, B, B, B], 0)], 9)) if one.used]
    assert [one.tokens for one in used] == [4]


@pytest.mark.parametrize("seed", range(3))
def test_it_holds_what_the_workers_hold(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source = random.Random(seed)
    workers = [Worker("p", 1), Worker("d", 1)]
    index = new_index(workers, ["prefill", "decode"])
    told = []
    for _ in range(60):
        worker = source.choice(workers)
        prompt = source.choices(range(len(TABLE)), k=source.randrange(1, 9))
        worker.store(index, source.choice(["", "s"]), prompt)
        told.append(prompt)
        if source.random() < 0.2:
            worker.evict(index, source)
    uses = [use("x", one, 0) for one in told]
    trunk = grow(index.roots, uses, 10_000)
    for worker in workers:
        held = sum(one.held.get(worker.name, 0) for one in all_of(trunk))
        assert held == len(worker.blocks)
    assert sum(one.tokens for one in all_of(trunk)) == trunk.below == len(index)
    monkeypatch.setattr(branches, "MOST_SEGMENTS", 5)
    assert 0 < len(all_of(grow(index.roots, [], 10_000))) <= 5
    few = grow(index.roots, uses, 4)
    assert len(all_of(few)) == 4
    assert few.below <= trunk.below
