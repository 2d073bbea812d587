"""The order of a prefill worker's queue, with SGLang's own policy and requests."""

from __future__ import annotations

from array import array
from types import SimpleNamespace

import pytest
from sglang.srt.managers import schedule_policy
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.schedule_policy import WAITING_QUEUE_PREFIX_MATCH_MAX, SchedulePolicy
from sglang.srt.sampling.sampling_params import SamplingParams

from ps_sglang.engine.handoff import priority
from ps_sglang.engine.request_state import begin_handoff
from ps_sglang.engine.tree.base_token_tree import BaseTokenTree
from ps_sglang.priority import encode_priority
from tests.engine.bare_tree import bare_tree, insert

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

LONG = WAITING_QUEUE_PREFIX_MATCH_MAX + 1
LENGTH = 64


def prompt(number: int) -> list[int]:
    return [number, *range(1_000, 1_000 + LENGTH - 1)]


def requests(count: int) -> list[Req]:
    reqs = []
    for number in range(count):
        params = SamplingParams(max_new_tokens=1)
        req = Req(str(number), "", array("q", prompt(number)), params, vocab_size=5_000)
        req.session_id = None
        begin_handoff(req, LENGTH)
        reqs.append(req)
    return reqs


@pytest.fixture
def tree() -> BaseTokenTree:
    """Of three requests it holds a part, the longest of number 70."""
    tree = bare_tree(page=1)
    for number, held in ((5, 16), (70, 48), (100, 32)):
        insert(tree, prompt(number)[:held])
    return tree


@pytest.fixture(autouse=True)
def _prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang asks what kind of worker it is in, which only a server sets up."""
    mode = SimpleNamespace(disaggregation_mode="prefill")
    monkeypatch.setattr(schedule_policy, "get_disagg", lambda: mode)
    monkeypatch.setattr(
        schedule_policy, "get_memory", lambda: SimpleNamespace(radix_eviction_policy="lru")
    )


def sort(tree: BaseTokenTree, queue: list[Req], policy: str = "lpm") -> list[int]:
    """The numbers of the requests as the worker would take them up."""
    scheduler = SchedulePolicy(policy, tree, False, False, False)
    scheduler.calc_priority(queue)
    priority.calc_priority(None, scheduler, queue)
    return [int(req.rid) for req in queue]


@pytest.mark.parametrize("count", [LONG - 1, LONG], ids=["SGLang's sort", "a long queue"])
def test_the_longest_held_prefix_goes_first(tree: BaseTokenTree, count: int) -> None:
    order = sort(tree, requests(count))
    assert order[:3] == [70, 100, 5]
    assert order[3:] == sorted(set(range(count)) - {5, 70, 100})


def test_priority_goes_before_a_held_prefix(tree: BaseTokenTree) -> None:
    queue = requests(LONG)
    queue[-1].priority = encode_priority(1, 0)
    assert sort(tree, queue)[:2] == [LONG - 1, 70]


def test_what_the_gateway_knew_held_is_no_priority(tree: BaseTokenTree) -> None:
    queue = requests(LONG)
    queue[-1].priority = encode_priority(0, 10_000)
    assert sort(tree, queue)[:3] == [70, 100, 5]


def test_room_goes_by_priority_and_then_by_what_is_held() -> None:
    """On a decode worker; equal ones stay in the order of arrival."""
    encoded = [encode_priority(*pair) for pair in ((0, 32), (1, 0), (0, 64), (-1, 10**9), (0, 32))]
    priorities = [None, *encoded[:3], None, *encoded[3:]]
    reqs = [SimpleNamespace(number=n, priority=one) for n, one in enumerate(priorities)]
    no_adapters = SimpleNamespace(enable_lora=False)
    queue = SimpleNamespace(queue=[SimpleNamespace(req=req) for req in reqs], scheduler=no_adapters)
    popped = priority.pop_preallocated(lambda queue: [*queue.queue], queue)
    assert [waiting.req.number for waiting in popped] == [2, 3, 1, 6, 0, 4, 5]


def test_other_policies_keep_their_order(tree: BaseTokenTree) -> None:
    assert sort(tree, requests(LONG), "fcfs") == list(range(LONG))


def test_a_request_is_looked_up_once(tree: BaseTokenTree) -> None:
    """And one that comes later takes its place among those that wait."""
    queue = requests(LONG)
    late = queue.pop(100)
    sort(tree, [*queue, *requests(1)])
    looked_up: list[int] = []
    match = tree.match_prefix
    tree.match_prefix = lambda params: looked_up.append(1) or match(params)  # type: ignore[method-assign, func-returns-value]
    assert sort(tree, [*queue, *requests(1), late])[:3] == [70, 100, 5]
    assert len(looked_up) == 2
