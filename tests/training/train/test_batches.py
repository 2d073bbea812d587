from __future__ import annotations

import itertools
import random

from ps_sglang.training.train.attention import answer_mask
from ps_sglang.training.train.batches import (
    FILLER,
    AnswerTokens,
    Example,
    LengthOrder,
    conditioned_batch,
    full_batch,
)

GROUP = 8


def lengths(count: int) -> list[int]:
    chance = random.Random(0)
    return [chance.randint(1, 500) for _ in range(count)]


def order(count: int, epoch: int = 0, seed: int = 0) -> list[int]:
    sampler = LengthOrder(lengths(count), GROUP, seed)
    sampler.epoch = epoch
    assert len(sampler) == count
    return list(sampler)


def test_an_epoch_takes_every_example_once() -> None:
    for count in (1, GROUP, 1003):
        assert sorted(order(count)) == list(range(count))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    assert order(100) == order(100)
    assert order(100) != order(100, epoch=1) != order(100, epoch=2)
    assert order(100) != order(100, seed=1)
    # Another seed's next epoch is not this one's: two runs share no order.
    assert order(100, epoch=1) != order(100, seed=1)


def test_groups_have_one_length_and_come_in_no_order_of_it() -> None:
    size = lengths(1600)
    groups = [order(1600)[i : i + GROUP] for i in range(0, 1600, GROUP)]
    spans = [max(size[i] for i in g) - min(size[i] for i in g) for g in groups]
    assert sum(spans) / len(spans) < 20
    means = [sum(size[i] for i in g) / GROUP for g in groups]
    rising = sum(b > a for a, b in itertools.pairwise(means))
    assert 70 < rising < 130


def test_a_batch_as_it_is_drawn_in_the_mask() -> None:
    """Two answers: tokens 4 and 5 after boundary 3, tokens 10 and 11 after boundary 9."""
    examples = [
        Example(tuple(range(10)), (AnswerTokens(4, (4, 5)), AnswerTokens(10, (10, 11)))),
        Example((20,), (AnswerTokens(1, (21,)),)),
    ]
    batch = conditioned_batch(examples)
    assert batch["base_ids"].tolist() == [list(range(9)), [0] * 9]
    assert batch["base_lengths"].tolist() == [9, 0]
    assert batch["input_ids"].tolist() == [[3, 4, 9, 10], [20, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[3, 4, 9, 10], [0, 0, 0, 0]]
    assert batch["labels"].tolist() == [[4, 5, 10, 11], [21, -100, -100, -100]]
    assert batch["answer_tokens"].tolist() == [4, 1]
    mask = answer_mask(batch["visible"], batch["segments"], prefix=9)
    assert mask.shape == (2, 1, 4, 9 + 4)
    drawn = ["".join("x" if seen else "." for seen in row) for row in mask[0, 0].tolist()]
    assert drawn == [
        "xxx......x...",
        "xxx......xx..",
        "xxxxxxxxx..x.",
        "xxxxxxxxx..xx",
    ]
    # A prompt of one token, and padding: nothing of the base, and never an empty row.
    drawn = ["".join("x" if seen else "." for seen in row) for row in mask[1, 0].tolist()]
    assert drawn == [
        ".........x...",
        "..........x..",
        "..........xx.",
        "..........xxx",
    ]


def test_a_batch_with_tails_as_it_is_drawn_in_the_mask() -> None:
    """Two tokens before boundaries 3 and 9; a prompt of two tokens has one of them."""
    examples = [
        Example(tuple(range(10)), (AnswerTokens(4, (4, 5)), AnswerTokens(10, (10, 11)))),
        Example((20, 21), (AnswerTokens(2, (22, 23)),)),
    ]
    batch = conditioned_batch(examples, tail=2)
    assert batch["base_ids"].tolist() == [list(range(9)), [20, *[0] * 8]]
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 7, 8, 9, 10], [20, 21, 22, *[0] * 5]]
    assert batch["position_ids"].tolist() == [[1, 2, 3, 4, 7, 8, 9, 10], [0, 1, 2, *[0] * 5]]
    assert batch["labels"].tolist() == [
        [-100, -100, 4, 5, -100, -100, 10, 11],
        [-100, 22, 23, *[-100] * 5],
    ]
    assert batch["answer_tokens"].tolist() == [4, 2]
    mask = answer_mask(batch["visible"], batch["segments"], prefix=9)
    drawn = [
        ["".join("x" if seen else "." for seen in row) for row in rows[0].tolist()] for rows in mask
    ]
    assert drawn[0] == [
        "x........x.......",
        "x........xx......",
        "x........xxx.....",
        "x........xxxx....",
        "xxxxxxx......x...",
        "xxxxxxx......xx..",
        "xxxxxxx......xxx.",
        "xxxxxxx......xxxx",
    ]
    # The base has nothing before the start of this prompt.
    assert drawn[1][:3] == [".........x.......", ".........xx......", ".........xxx....."]


def test_full_batch_has_plain_sequences() -> None:
    """One for the answers that stand in the next prompt, another for one that does not."""
    chained = Example(tuple(range(6)), (AnswerTokens(2, (2, 3)), AnswerTokens(6, (6, 7))))
    apart = Example((9, 8, 7), (AnswerTokens(1, (5,)), AnswerTokens(3, (6, 6))))
    batch = full_batch([chained, apart])
    assert batch["input_ids"].tolist() == [
        [0, 1, 2, 3, 4, 5, 6],
        [9, 0, 0, 0, 0, 0, 0],
        [9, 8, 7, 6, 0, 0, 0],
    ]
    assert batch["labels"].tolist() == [
        [-100, 2, 3, -100, -100, 6, 7],
        [5, *[-100] * 6],
        [-100, -100, 6, 6, *[-100] * 3],
    ]
    assert batch["owners"].tolist() == [0, 1, 1]
    assert batch["answer_tokens"].tolist() == [4, 3]


def test_fillers_end_the_order_and_are_not_learned() -> None:
    sampler = LengthOrder(lengths(21), GROUP, 0, multiple=4)
    assert len(sampler) == 24
    assert list(sampler) == [*order(21), 21, 21, 21]
    for batch in (conditioned_batch([FILLER]), full_batch([FILLER])):
        assert batch["labels"].tolist() == [[-100]]
        assert batch["input_ids"].tolist() == [[0]]
