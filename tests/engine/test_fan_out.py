"""Many who want one prefix at the same time: one prefill, whoever ends when."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from tests.engine.served import Launch, Models, Served, kinds
from tests.engine.tree_mirror import TreeMirror
from tests.support.engine_client import (
    assert_conserved,
    counters,
    generate,
    growth,
    in_work,
    send,
    together,
)
from tests.support.hf_reference import expected

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Prompts = Callable[[int, int], list[list[int]]]
DECODERS = ("a", "b", "c")
CHUNK = 16
LONG = 112 * CHUNK


@pytest.fixture(scope="module", params=kinds([16], [1]), ids="page {}".format)
def page(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def served(page: int, llama: Models, launch: Launch) -> Served:
    flags = ("--page-size", str(page), "--chunked-prefill-size", str(CHUNK))
    return launch(llama, *DECODERS, engine_args=flags)


def computed(served: Served, calls: Sequence[Callable[[], Any]]) -> tuple[list[Any], int]:
    """The answers to calls made at the same time, and the tokens that the base computed."""
    before = counters(served.cluster)
    answers = together(calls)
    after = counters(served.cluster)
    return answers, growth(before, after, "prefill-0", "prefill_tokens.computed")


def test_three_decoders_at_once_cost_one_prefill(
    served: Served, page: int, prompts: Prompts
) -> None:
    """A cold prompt of 6 chunks, asked for six times at once."""
    (ids,) = prompts(1, 6 * CHUNK + 1)
    calls = [partial(generate, served.cluster, name, ids) for name in DECODERS * 2]
    answers, tokens = computed(served, calls)
    assert tokens == 6 * CHUNK
    for name, answer in zip(DECODERS * 2, answers, strict=True):
        want = expected(served.models.base, served.models.decoders[name], ids)
        assert answer["output_ids"] == want.tokens
    assert_conserved(served.cluster)


def test_a_shared_stem_is_computed_once_and_each_ending_by_itself(
    served: Served, prompts: Prompts
) -> None:
    """Who comes when less than 32 tokens of the stem are missing computes them once more."""
    stem = prompts(1, 24 * CHUNK)[0]
    tails = prompts(4, 49)
    calls = [
        partial(generate, served.cluster, name, stem + tail)
        for name, tail in zip((*DECODERS, "a"), tails, strict=True)
    ]
    answers, tokens = computed(served, calls)
    assert 0 <= tokens - (24 * CHUNK + 4 * 48) < 3 * 32
    for name, tail, answer in zip((*DECODERS, "a"), tails, answers, strict=True):
        want = expected(served.models.base, served.models.decoders[name], stem + tail)
        assert answer["output_ids"] == want.tokens
    assert_conserved(served.cluster)


def test_tenants_do_not_wait_for_each_other(served: Served, prompts: Prompts) -> None:
    (ids,) = prompts(1, 6 * CHUNK + 1)
    calls = [partial(generate, served.cluster, "a", ids, cache_salt=salt) for salt in "xy"]
    _, tokens = computed(served, calls)
    assert tokens == 2 * 6 * CHUNK


@pytest.fixture(scope="module")
def tree(served: Served) -> Iterator[TreeMirror]:
    mirror = TreeMirror(served.cluster.plan.workers[0].events, served.cluster.key)
    yield mirror
    mirror.close()


def test_whoever_comes_half_way_through_waits(
    served: Served, tree: TreeMirror, prompts: Prompts
) -> None:
    """The leader is in its chunks when the others come; it prefills for all of them."""
    (ids,) = prompts(1, LONG + 1)
    before = counters(served.cluster)
    with ThreadPoolExecutor(3) as pool:
        leader = pool.submit(generate, served.cluster, "a", ids)
        others = _come_half_way(served, tree, pool, ids)
        assert not leader.done()
        answers = {"a": leader.result()} | {name: one.result() for name, one in others.items()}
    after = counters(served.cluster)
    assert growth(before, after, "prefill-0", "prefill_tokens.computed") == LONG
    assert growth(before, after, "prefill-0", "prefill_tokens.tree") == 2 * LONG
    assert growth(before, after, "prefill-0", "prefill_waited") == 2
    for name, answer in answers.items():
        want = expected(served.models.base, served.models.decoders[name], ids)
        assert answer["output_ids"] == want.tokens
    assert_conserved(served.cluster)


def test_an_aborted_leader_leaves_the_lead_to_the_next(
    served: Served, tree: TreeMirror, prompts: Prompts
) -> None:
    """What it computed stays; the next one computes the rest, and the last one nothing."""
    (ids,) = prompts(1, LONG + 1)
    before = counters(served.cluster)
    url = f"{served.cluster.url}/models/a/generate"
    with ThreadPoolExecutor(2) as pool:
        with send(url, {"input_ids": ids}):
            others = _come_half_way(served, tree, pool, ids)
        answers = {name: one.result() for name, one in others.items()}
    after = counters(served.cluster)
    computed = growth(before, after, "prefill-0", "prefill_tokens.computed")
    assert growth(before, after, "prefill-0", "prefill_requests") == 2
    assert 0 < computed <= LONG - CHUNK
    assert growth(before, after, "prefill-0", "prefill_tokens.tree") == 2 * LONG - computed
    for name, answer in answers.items():
        want = expected(served.models.base, served.models.decoders[name], ids)
        assert answer["output_ids"] == want.tokens
    assert_conserved(served.cluster)


def _come_half_way(
    served: Served, tree: TreeMirror, pool: ThreadPoolExecutor, ids: list[int]
) -> dict[str, Future[Any]]:
    """Ask for `ids` on b and c when the first chunk is in the tree; until both wait."""
    prefill = served.cluster.plan.workers[0].url
    tree.wait_for(ids[:CHUNK])
    others = {name: pool.submit(generate, served.cluster, name, ids) for name in "bc"}
    while in_work(prefill).get("num_waiting_reqs") != 2:
        assert not any(one.done() for one in others.values())
    return others
