"""The base-token index against a model that looks at every block."""

from __future__ import annotations

import random

import pytest

from ps_sglang.gateway.index import segment
from ps_sglang.gateway.index.base_index import BaseIndex, OutOfSync
from ps_sglang.gateway.index.lookup import SPARE_STEPS, PrefixMatch
from ps_sglang.gateway.index.texts import TokenTexts
from tests.gateway.index_model import TABLE, Worker, block_hash, held, new_index

ROLES = ("prefill", "prefill", "decode", "decode")


def _text(ids: tuple[int, ...] | list[int]) -> bytes:
    return b"".join(TABLE[one] for one in ids)


def _check(index: BaseIndex, workers: list[Worker], source: random.Random) -> None:
    everything = [block for worker in workers for block in sorted(worker.blocks)]
    prompts = [(source.choice(("", "s")), b"")]
    for salt, ids in source.sample(everything, min(6, len(everything))):
        prompts.append((salt, _text(ids)[: -source.randrange(3) or None] + b"ab"))
    for salt, text in prompts:
        assert index.match(text, salt) == held(workers, text, salt)
    for worker in workers:
        assert index.held_tokens(worker.name) == len(worker.blocks) * worker.size
    for role in ("prefill", "decode"):
        group = [one for one, its in zip(workers, ROLES, strict=True) if its == role]
        distinct = set().union(*(one.blocks for one in group))
        copies = sum(len(one.blocks) for one in group)
        assert index.duplicated(role) == (copies - len(distinct)) * workers[0].size
    assert len(index) == len(set(everything))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("longest", [1, 4, 256])
@pytest.mark.parametrize("seed", range(4))
def test_it_equals_the_trees_after_any_events(
    seed: int, longest: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("segment", "base_index"):
        monkeypatch.setattr(f"ps_sglang.gateway.index.{module}.LONGEST", longest)
    source = random.Random(seed)
    workers = [Worker(f"w{number}", size) for number in range(4)]
    index = new_index(workers, ROLES)
    told = [[source.randrange(len(TABLE)) for _ in range(20)] for _ in range(3)]
    for _ in range(150):
        worker = source.choice(workers)
        action = source.random()
        if action < 0.55:
            # Conversations share beginnings and branch anywhere, also in the middle of a block.
            prompt = source.choice(told)[: source.randrange(1, 30)]
            prompt = [*prompt, *(source.randrange(len(TABLE)) for _ in range(source.randrange(9)))]
            told[source.randrange(3)] = prompt
            worker.store(index, source.choice(("", "s")), prompt)
        elif action < 0.97:
            worker.evict(index, source)
        else:
            worker.blocks.clear()
            index.cleared(worker.name)
        _check(index, workers, source)
    for worker in workers:
        index.drop_worker(worker.name)
    assert len(index) == 0
    assert index.match(_text(told[0])) == {}
    assert not index._segments  # white box: nothing else tells of a leak
    assert not index._roots


@pytest.fixture
def one() -> tuple[BaseIndex, Worker]:
    worker = Worker("w", 1)
    return new_index([worker], ["prefill"]), worker


def test_blocks_behind_an_unknown_parent_are_refused(one: tuple[BaseIndex, Worker]) -> None:
    index, worker = one
    worker.store(index, "", [0, 1])
    with pytest.raises(OutOfSync, match="behind block 99, which it does not hold"):
        index.stored("w", [1], 99, [5], 1)
    index.add_worker("other", "prefill")
    with pytest.raises(OutOfSync, match="other stored blocks behind"):
        index.stored("other", [1], block_hash(("", (0, 1))), [5], 1)
    assert index.match(b"ab") == {"w": PrefixMatch(2, 2)}


@pytest.mark.parametrize(
    ("hashes", "ids"), [([], []), ([1], [0, 1]), ([1, 2], [0])], ids=["empty", "more", "fewer"]
)
def test_an_event_that_contradicts_itself_is_refused(
    one: tuple[BaseIndex, Worker], hashes: list[int], ids: list[int]
) -> None:
    with pytest.raises(OutOfSync, match=f"{len(hashes)} blocks of 1 tokens came with {len(ids)}"):
        one[0].stored("w", hashes, None, ids, 1)


def test_a_known_block_in_another_place_is_refused(one: tuple[BaseIndex, Worker]) -> None:
    index, worker = one
    worker.store(index, "", [0, 1, 2])
    first, last = (block_hash(("", (0,))), block_hash(("", (0, 1, 2))))
    for hashes, parent, salt in (([last], first, ""), ([last], None, ""), ([first], None, "s")):
        with pytest.raises(OutOfSync, match="in another place"):
            index.stored("w", hashes, parent, [0], 1, salt)


def test_storing_what_is_held_changes_nothing(one: tuple[BaseIndex, Worker]) -> None:
    index, worker = one
    worker.store(index, "", [0, 1, 2])
    hashes = [block_hash(("", (0, 1, 2)[: end + 1])) for end in range(2)]
    index.stored("w", hashes, None, [0, 1], 1)
    assert index.match(_text([0, 1, 2])) == {"w": PrefixMatch(3, 4)}
    assert index.held_tokens("w") == 3


def test_removing_an_inner_block_removes_what_follows_it(one: tuple[BaseIndex, Worker]) -> None:
    index, worker = one
    for ids in ([0, 1, 2, 3], [0, 1, 5, 6], [0, 4]):
        worker.store(index, "", ids)
    index.removed("w", [block_hash(("", (0, 1)))])
    assert index.match(_text([0, 1, 2, 3])) == {"w": PrefixMatch(1, 1)}
    assert index.match(_text([0, 4])) == {"w": PrefixMatch(2, 4)}
    assert len(index) == 2
    index.removed("w", [block_hash(("", (0, 1, 2))), 12345])
    assert index.held_tokens("w") == 2


def test_ids_outside_of_the_vocabulary_are_in_no_text() -> None:
    texts = TokenTexts(TABLE)
    assert texts.of([0, -1, 10, 9]) == [b"a", b"\xff-1\xff", b"\xff10\xff", b"bb"]
    assert texts.of([0, 1, 2, 3], 2) == [b"ab", b"abba"]


def test_a_prompt_of_many_readings_costs_no_more_than_its_length(
    one: tuple[BaseIndex, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    index, worker = one
    source = random.Random(1)
    for _ in range(300):  # every one says "aaaa..." in other tokens
        worker.store(index, "", [source.choice((0, 8)) for _ in range(12)])
    looked = 0
    matching = segment.Segment.matching

    def counted(self: segment.Segment, text: bytes, at: int) -> int:
        nonlocal looked
        looked += 1
        return matching(self, text, at)

    monkeypatch.setattr(segment.Segment, "matching", counted)
    assert index.match(b"a" * 12)["w"].tokens > 8
    assert looked == 12 + SPARE_STEPS
