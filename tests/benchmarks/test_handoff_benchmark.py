"""The handoff benchmark: what it compares, and that it would notice if nothing were moved."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.handoff.__main__ import figures, misses
from benchmarks.handoff.blocks import blocks
from benchmarks.handoff.cases import BUFFERS, CASES, POOL_TOKENS, Case
from benchmarks.handoff.prefill_worker import OURS, PrefillWorker, workers


@pytest.fixture(scope="module")
def worker() -> Iterator[PrefillWorker]:
    with workers([]) as found:
        yield found


@pytest.mark.parametrize("way", ["memcpy", *OURS])
@pytest.mark.parametrize("case", [Case(100, 1, True), Case(100, 16, False)], ids=str)
def test_every_way_moves_the_pages(worker: PrefillWorker, way: str, case: Case) -> None:
    assert worker.check(way, case) > 0


def test_a_way_that_moves_nothing_is_found_out(worker: PrefillWorker) -> None:
    worker.ways["nothing"] = lambda *_: 0.0
    with pytest.raises(RuntimeError, match="nothing moved other bytes: 100 tokens"):
        worker.check("nothing", CASES[0])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_pages_are_distinct_and_inside_the_pool(case: Case) -> None:
    pages = case.draw(np.random.default_rng(0))
    assert len(set(pages.tolist())) == case.pages
    assert 0 <= pages.min() <= pages.max() < POOL_TOKENS // case.page_size
    assert (np.diff(pages) == 1).all() == (not case.scattered)
    assert case.size == case.pages * case.page_size * 46080


def test_pages_that_follow_each_other_in_both_pools_are_one_block() -> None:
    pages, targets = np.array([4, 5, 6, 9], np.int32), np.array([1, 2, 7, 8], np.int32)
    places, target_places, lengths = blocks([10_000, 20_000], pages, [0, 50_000], targets, 1)
    firsts = np.array([4, 6, 9]) * 768
    assert places.tolist() == [*(10_000 + firsts), *(20_000 + firsts)]
    targets_of_firsts = np.array([1, 7, 8]) * 768
    assert target_places.tolist() == [*targets_of_firsts, *(50_000 + targets_of_firsts)]
    assert lengths.tolist() == [1536, 768, 768] * 2


def test_contiguous_pages_are_one_block_a_buffer() -> None:
    run = np.arange(100, dtype=np.int32)
    _, _, lengths = blocks([0] * BUFFERS, run, [0] * BUFFERS, run + 7, 16)
    assert lengths.tolist() == [100 * 16 * 768] * BUFFERS


def test_missed_bars_are_named() -> None:
    good = {"memcpy": [1.0], "shm": [2.0], "shm_without_digest": [1.5], "tcp": [24.0]}
    good["tcp_without_key"] = [8.0]
    good["mooncake_tcp"] = [8.0]
    assert misses({"case": figures(CASES[0], good)}) == []
    bad = {**good, "shm": [2.5], "tcp_without_key": [9.0]}
    assert misses({"case": figures(CASES[0], bad)}) == [
        "bar missed: case: shm takes 2.50x memcpy, more than 2x",
        "bar missed: case: shm is 3.2x faster than mooncake_tcp, less than 4x",
        "bar missed: case: tcp_without_key takes 1.12x mooncake_tcp, more than 1x",
    ]


def test_without_mooncake_only_memcpy_is_compared_with() -> None:
    times = {"memcpy": [1.0], "shm": [3.0], "shm_without_digest": [1.5], "tcp": [8.0]}
    times["tcp_without_key"] = [4.0]
    found = figures(CASES[0], times)
    assert found["shm_over_shm_without_digest"] == 2.0
    assert found["tcp_over_tcp_without_key"] == 2.0
    assert misses({"case": found}) == ["bar missed: case: shm takes 3.00x memcpy, more than 2x"]
