"""The choice of a pair looks at each worker once, and finds what all pairs would show."""

from __future__ import annotations

import random
from itertools import product

import pytest

from ps_sglang.gateway.config import DecodeWorker, PrefillWorker
from ps_sglang.gateway.routing import cost
from ps_sglang.gateway.routing.cost import DecodeTerms, Pair, PrefillTerms
from ps_sglang.gateway.routing.worker_state import WorkerState


def prefill(source: random.Random, number: int, host: str, most: float) -> PrefillTerms:
    state = WorkerState(PrefillWorker(f"p{number}", f"http://{host}:1", host, number))
    state.load.chosen = source.randint(0, 2)
    new, queue, balance = (float(source.randint(0, 3)) * most for _ in range(3))
    return PrefillTerms(state, 0.0, new, queue, balance, source.choice((0.0, most)))


def decode(source: random.Random, number: int, host: str, most: float) -> DecodeTerms:
    state = WorkerState(DecodeWorker(f"d{number}", f"http://{host}:2", "a"))
    state.load.chosen = source.randint(0, 2)
    moved = source.choice((0.0, 0.5, 16.0, 64.0, 160.0))  # half a token is an estimate's fraction
    return DecodeTerms(
        state, 0.0, moved, float(source.randint(0, 3)) * most, source.choice((0.0, most))
    )


def by_all_pairs(prefill: list[PrefillTerms], decode: list[DecodeTerms]) -> Pair:
    """The cheapest of all; among equals the one chosen least often, then the older one."""

    def order(pair: Pair) -> tuple[float, int, int]:
        one, other = pair
        move, new = 0.0, 0.0
        if other.moved >= 1:
            same = one.worker_state.host == other.worker_state.host
            new = one.new
            move = other.moved * (cost.MOVE_SAME_HOST if same else cost.MOVE_OTHER_HOST)
        total = new + move + one.queue + one.balance + one.leaves + other.load + other.leaves
        return total, one.worker_state.load.chosen, other.worker_state.load.chosen

    return min(product(prefill, decode), key=order)


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_that_of_all_pairs(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Weights that floats hold exactly: equal costs come out equal in whatever order one adds.
    monkeypatch.setattr(cost, "MOVE_SAME_HOST", 1 / 16)
    monkeypatch.setattr(cost, "MOVE_OTHER_HOST", 1 / 4)
    source = random.Random(seed)
    for _ in range(100):
        hosts = [f"host{number}" for number in range(source.randint(1, 4))]
        most = source.choice((1.0, 8.0))
        left = [
            prefill(source, number, source.choice(hosts), most)
            for number in range(source.randint(1, 6))
        ]
        right = [
            decode(source, number, source.choice(hosts), most)
            for number in range(source.randint(1, 6))
        ]
        decision = cost.decide(100.0, left, right)
        expected = by_all_pairs(left, right)
        assert decision.chosen[0] is expected[0]
        assert decision.chosen[1] is expected[1]
        assert len(decision.explain()["candidates"]) == len(left) * len(right)
