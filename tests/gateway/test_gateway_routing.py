"""Choice of workers, without HTTP: real pool, cache index and router, a clock that stands still."""

from __future__ import annotations

from typing import Literal

import pytest

from ps_sglang.events.messages import Span
from ps_sglang.gateway.config import Adapter, DecodeWorker, PrefillWorker
from ps_sglang.gateway.errors import NoWorker
from ps_sglang.gateway.index.cache_index import CacheIndex
from ps_sglang.gateway.index.estimate import SECONDS
from ps_sglang.gateway.index.prompt import Prompt
from ps_sglang.gateway.index.prompts import Prompts
from ps_sglang.gateway.routing import cost
from ps_sglang.gateway.routing.pool import WorkerPool
from ps_sglang.gateway.routing.router import Route, Router
from ps_sglang.gateway.routing.sessions import Session
from ps_sglang.gateway.routing.worker_state import BreakerState

BLOCK = 128  # tokens of a block of the estimate, 4 bytes each


class Setup:
    """A router before `prefill` prefill workers and `replicas` decode workers of `a` and `b`."""

    def __init__(self, prefill: int = 2, replicas: int = 2, hosts: int = 1) -> None:
        self.now = 0.0
        self.cache_index = CacheIndex(Prompts(problem="no tokenizer"), clock=lambda: self.now)
        workers = [
            PrefillWorker(f"p{i}", f"http://host{i % hosts}:1", "h", i) for i in range(prefill)
        ]
        self.pool = WorkerPool(workers)
        for decoder in "ab":
            for i in range(replicas):
                url = f"http://host{i % hosts}:2"
                self.pool.add(DecodeWorker(f"{decoder}{i}", url, decoder))
        for worker_state in self.pool:
            self.cache_index.add(worker_state.worker)
        self.router = Router(self.pool, self.cache_index, clock=lambda: self.now)

    def choose(
        self, prompt: Prompt, decoder: str = "a", *tried: str, session: Session | None = None
    ) -> Route:
        return self.router.choose(prompt, self.pool.served(decoder), tried, session)

    def run(self, prompt: Prompt, decoder: str = "a", *tried: str) -> Route:
        """A request that has ended."""
        route = self.choose(prompt, decoder, *tried)
        route.handed_over()
        route.release()
        return route

    def tell(self, name: str, role: Literal["prefill", "decode"], computed: int) -> None:
        """A worker tells in its event stream that a request has ended."""
        record = Span(rid="r", role=role, began=0.0, computed=computed)
        self.cache_index.worker_cache(name).span(record)

    def recent(self, name: str) -> float:
        worker_state = self.pool.get(name)
        assert worker_state is not None
        return worker_state.load.recent_tokens

    def load(self, name: str) -> tuple[int, float, float]:
        worker_state = self.pool.get(name)
        assert worker_state is not None
        return (
            worker_state.load.requests,
            worker_state.load.queued_tokens,
            worker_state.load.moving_tokens,
        )


def prompt(blocks: float, letter: str = "x", salt: str = "") -> Prompt:
    """A prompt of that many blocks and the boundary token."""
    tokens = int(blocks * BLOCK)
    text = (letter * 4 * (tokens + 1)).encode()
    return Prompt(text, salt, tokens + 1)


def pair(route: Route) -> tuple[str, str]:
    return route.prefills.name, route.decode.name


def test_a_longer_prompt_goes_where_its_prefix_is() -> None:
    setup = Setup()
    first = setup.run(prompt(8))
    assert (first.new_tokens, first.moved_tokens) == (8 * BLOCK, 8 * BLOCK)
    other = setup.run(prompt(8, "y"))
    assert other.prefills is not first.prefills
    for longer in (10, 20):
        route = setup.run(prompt(longer))
        assert pair(route) == pair(first)
    assert (route.new_tokens, route.moved_tokens) == (10 * BLOCK, 10 * BLOCK)


def test_the_prefix_is_shared_by_all_decoders() -> None:
    setup = Setup()
    first = setup.run(prompt(8))
    assert first.shared_tokens == 0
    second = setup.run(prompt(8), "b")
    assert second.prefills is first.prefills
    assert (second.new_tokens, second.moved_tokens) == (0, 8 * BLOCK)
    assert second.shared_tokens == 8 * BLOCK, "the turn of `a` brought it in"
    assert second.decode.worker.decoder == "b"


def test_a_decoder_that_holds_all_needs_neither_prefill_nor_pages() -> None:
    setup = Setup(replicas=1)
    setup.run(prompt(8))
    setup.pool.remove("p0")
    setup.cache_index.remove("p0")
    setup.cache_index.forget("p1")
    route = setup.choose(prompt(8))
    assert (route.new_tokens, route.moved_tokens) == (0, 0)
    terms = route.decision.explain()["candidates"][0]["terms"]
    assert (terms["new"], terms["move"]) == (0, 0)


def test_a_prefill_worker_that_had_nothing_to_do_holds_nothing() -> None:
    setup = Setup(replicas=1)
    setup.run(prompt(8))
    for name in ("p0", "p1"):
        setup.cache_index.forget(name)
    waiting = setup.choose(prompt(8))
    assert waiting.moved_tokens == 0
    waiting.handed_over()
    assert setup.choose(prompt(8), "b").new_tokens == 8 * BLOCK


def test_tenants_share_nothing() -> None:
    setup = Setup()
    setup.run(prompt(8, salt="s"))
    assert setup.run(prompt(8, salt="t")).new_tokens == 8 * BLOCK
    assert setup.run(prompt(8, salt="s")).new_tokens == 0


def test_a_burst_of_different_prompts_spreads() -> None:
    setup = Setup(prefill=3, replicas=3)
    chosen = [pair(setup.choose(prompt(8, letter))) for letter in "uvwxyz"]
    assert sorted(one for one, _ in chosen) == ["p0", "p0", "p1", "p1", "p2", "p2"]
    assert sorted(one for _, one in chosen) == ["a0", "a0", "a1", "a1", "a2", "a2"]


def test_a_burst_of_short_prompts_spreads() -> None:
    setup = Setup()
    chosen = [setup.choose(prompt(0.1, letter)).prefills.name for letter in "wxyz"]
    assert sorted(chosen) == ["p0", "p0", "p1", "p1"]


def test_a_burst_of_one_long_prompt_stays_together() -> None:
    setup = Setup()
    routes = [setup.choose(prompt(40)) for _ in range(10)]
    assert {route.prefills.name for route in routes} == {"p0"}
    assert [route.new_tokens for route in routes] == [40 * BLOCK] + [0] * 9


def test_the_load_window_keeps_a_prefix_while_the_queue_is_short() -> None:
    """The window is 2 S tokens of queue for S tokens saved: here 20 blocks for 10."""
    for queue, stays in ((18, True), (22, False)):
        setup = Setup()
        home = setup.run(prompt(10)).prefills
        setup.now += 15 * cost.RECENT_HALF_LIFE  # what it has done is long ago
        home.load.queued_tokens += queue * BLOCK
        assert (setup.choose(prompt(12)).prefills is home) == stays, queue


def test_misses_go_to_the_worker_that_did_less() -> None:
    """However little less, and however often it was chosen."""
    setup = Setup()
    assert setup.run(prompt(80)).prefills.name == "p0"
    assert setup.run(prompt(76, "y")).prefills.name == "p1"
    setup.pool.prefill[1].load.chosen += 10
    assert setup.run(prompt(1, "z")).prefills.name == "p1"


def test_unfinished_prefills_count_also_when_there_is_nothing_to_compute() -> None:
    setup = Setup(replicas=1)
    assert setup.run(prompt(8), "a", "p1").new_tokens == 8 * BLOCK
    assert setup.run(prompt(8), "b", "p0").new_tokens == 8 * BLOCK
    setup.cache_index.forget("a0")
    assert setup.choose(prompt(8), "a").prefills.name == "p0"
    setup.pool.prefill[1].load.chosen += 10
    assert setup.choose(prompt(8), "a").prefills.name == "p1"


def test_misses_go_by_load_whatever_is_shared_by_chance() -> None:
    setup = Setup()
    first = setup.run(prompt(40))
    few = Prompt(b"x" * 40 + b"y" * 4000, tokens=1011)
    assert setup.choose(few).prefills is not first.prefills


def test_recent_work_spreads_prompts_of_which_no_queue_is_seen() -> None:
    setup = Setup()
    work = {"p0": 0.0, "p1": 0.0}
    shared = b"s" * 4 * 10 * BLOCK
    for number in range(40):
        own = f"{number:04d}".encode() * (20 * BLOCK)
        route = setup.run(Prompt(shared + own, tokens=30 * BLOCK + 1))
        work[route.prefills.name] += route.new_tokens
        setup.now += 0.5
    assert max(work.values()) / (sum(work.values()) / 2) < 1.2
    assert sum(work.values()) == 40 * 20 * BLOCK + 2 * 10 * BLOCK, "one more copy of what is shared"


def test_recent_work_is_what_a_worker_with_events_says_that_it_was() -> None:
    """A full pool may have let go what was held when the request was sent."""
    setup = Setup(replicas=1)
    for name in ("p0", "p1"):
        setup.cache_index.worker_cache(name).live()
    assert setup.run(prompt(8)).prefills.name == "p0"
    assert setup.run(prompt(8, "y")).prefills.name == "p1"
    assert [setup.recent(name) for name in ("p0", "p1")] == [0, 0]
    for name, tokens in (("p0", 20), ("p0", 900), ("p1", 30)):
        setup.tell(name, "prefill", tokens)
    setup.tell("a0", "decode", 5000)
    assert [setup.recent(name) for name in ("p0", "p1", "a0")] == [920, 30, 0]
    assert setup.run(prompt(1, "z")).prefills.name == "p1"
    setup.cache_index.worker_cache("p1").lost("it restarts")
    setup.run(prompt(2, "w"), "a", "p0")
    assert setup.recent("p1") == 30 + 2 * BLOCK, "nothing tells: what is expected counts"


def test_what_a_worker_tells_after_it_has_left_counts_for_nobody() -> None:
    setup = Setup()
    worker_cache = setup.cache_index.worker_cache("p0")
    setup.pool.remove("p0")
    worker_cache.span(Span(rid="r", role="prefill", began=0.0, computed=9))
    assert setup.recent("p1") == 0


def test_recent_work_is_forgotten() -> None:
    setup = Setup()
    home = setup.run(prompt(100)).prefills
    setup.now += 20 * cost.RECENT_HALF_LIFE
    for letter in "uvwxyz":  # equal loads: in turns, and not all to the other one
        setup.run(prompt(0.1, letter))
    assert home.load.chosen == 4


def test_pages_move_within_a_host_rather_than_between_hosts() -> None:
    setup = Setup(hosts=2)
    setup.pool.prefill[0].load.queued_tokens = 2 * BLOCK
    route = setup.choose(prompt(20))
    assert pair(route) == ("p1", "a1"), "the older a0 is as idle, but on the busy one's host"
    setup = Setup(hosts=2)
    setup.pool.prefill[0].load.queued_tokens = 8 * BLOCK
    setup.pool.decode("a")[1].load.requests = 10
    assert pair(setup.choose(prompt(20))) == ("p1", "a0"), "a busy worker costs more"


def test_a_decode_worker_is_left_when_its_requests_outweigh_the_pages() -> None:
    """A conversation of 4,000 tokens stays while there are at most three requests more."""
    for more, stays in ((3, True), (4, False)):
        setup = Setup(prefill=1)
        home = setup.run(prompt(4000 / BLOCK)).decode
        for _ in range(more):
            home.begin()
        assert (setup.choose(prompt(4100 / BLOCK)).decode is home) == stays, more


def test_idle_workers_take_turns() -> None:
    setup = Setup()
    for _ in range(2):
        hint_actions = [pair(setup.run(prompt(0.1, letter))) for letter in "yz"]
        assert sorted(hint_actions) == [("p0", "a0"), ("p1", "a1")]
        for name in ("p0", "p1", "a0", "a1"):
            setup.cache_index.forget(name)


def test_what_is_counted_is_taken_back_once() -> None:
    setup = Setup(prefill=1, replicas=1)
    route, other = setup.choose(prompt(8)), setup.choose(prompt(8, "y"))
    tokens = 8 * BLOCK
    assert setup.load("p0") == (2, 2 * tokens, 0)
    assert setup.load("a0") == (2, 0, 2 * tokens)
    assert route.needs(route.prefills)
    route.handed_over()
    route.handed_over()
    assert not route.needs(route.prefills)
    assert route.needs(route.decode)
    assert not route.needs(setup.pool.decode("b")[0])
    assert setup.load("p0") == (1, tokens, 0)
    assert setup.load("a0") == (2, 0, tokens)
    route.release()
    route.release()
    other.release()
    assert setup.load("p0") == (0, 0, 0)
    assert setup.load("a0") == (0, 0, 0)


def test_a_worker_that_was_lost_is_believed_empty() -> None:
    setup = Setup(prefill=1, replicas=1)
    route = setup.run(prompt(8))
    setup.router.lost(route.prefills)
    setup.router.lost(route.decode)
    assert setup.choose(prompt(8)).new_tokens == 8 * BLOCK


def test_a_prompt_that_never_arrived_is_not_held() -> None:
    setup = Setup()
    route = setup.choose(prompt(8))
    route.release()
    assert setup.choose(prompt(8)).new_tokens == 8 * BLOCK


def test_an_estimate_is_believed_for_a_while() -> None:
    setup = Setup(prefill=1, replicas=1)
    setup.run(prompt(8))
    setup.now = SECONDS + 1
    assert setup.choose(prompt(8)).new_tokens == 8 * BLOCK


def test_tried_workers_are_left_out() -> None:
    setup = Setup()
    assert pair(setup.choose(prompt(1), "a", "p0", "a1")) == ("p1", "a0")
    assert setup.router.can_choose(setup.pool.served("a"), {"p0", "a0"})
    assert not setup.router.can_choose(setup.pool.served("a"), {"p0", "p1"})
    assert not setup.router.can_choose(setup.pool.served("a"), {"a0", "a1"})
    assert setup.router.can_choose(setup.pool.served("b"), {"a0", "a1"})
    before = setup.load("a0")
    with pytest.raises(NoWorker):
        setup.choose(prompt(1), "a", "p0", "p1")
    assert setup.load("a0") == before


def test_draining_workers_get_nothing() -> None:
    setup = Setup(prefill=1)
    setup.pool.decode("a")[0].draining = True
    assert {setup.choose(prompt(1, x)).decode.name for x in "uvwxyz"} == {"a1"}
    setup.pool.prefill[0].draining = True
    assert not setup.router.can_choose(setup.pool.served("a"), ())


def test_a_conversation_stays_with_its_workers() -> None:
    """Also when nothing tells that they hold it."""
    setup = Setup()
    session = Session("s")
    first = setup.choose(prompt(8), session=session)
    first.release()
    for name in ("p0", "p1", "a0", "a1"):
        setup.cache_index.forget(name)
    for number in range(5):
        route = setup.choose(prompt(8, str(number)), session=session)
        assert pair(route) == pair(first)
        route.release()
    other = setup.choose(prompt(8), "b", session=session)
    assert other.prefills is first.prefills
    assert session.decode == {"a": first.decode, "b": other.decode}
    assert session.visited == {first.prefills, first.decode, other.decode}


def test_a_conversation_leaves_a_worker_whose_queue_is_too_long() -> None:
    for queue, stays in ((2 * cost.LEAVE_TOKENS - 200, True), (2 * cost.LEAVE_TOKENS + 200, False)):
        setup = Setup(replicas=1)
        session = Session("s")
        first = setup.choose(prompt(8), session=session)
        first.release()
        first.prefills.load.queued_tokens += queue
        second = setup.choose(prompt(8, "y"), session=session)
        assert (second.prefills is first.prefills) == stays, queue
        assert session.prefill is second.prefills


def test_a_conversation_leaves_a_broken_or_draining_worker() -> None:
    setup = Setup()
    session = Session("s")
    first = setup.choose(prompt(8), session=session)
    first.release()
    first.prefills.breaker = BreakerState.OPEN
    first.decode.draining = True
    second = setup.choose(prompt(9), session=session)
    assert second.prefills is not first.prefills
    assert second.decode is not first.decode


def test_a_decision_is_explained_and_changes_nothing() -> None:
    setup = Setup(prefill=2, replicas=1)
    setup.run(prompt(18))
    session = Session("s")
    setup.choose(prompt(1, "y"), session=session).release()
    before = [setup.load(worker_state.name) for worker_state in setup.pool]
    told = setup.router.decide(prompt(20), setup.pool.served("a"), session=session).explain()
    assert [setup.load(worker_state.name) for worker_state in setup.pool] == before
    assert told["prompt_tokens"] == 20 * BLOCK
    assert told["chosen"] == {"prefill": "p0", "decode": "a0"}
    best, second = told["candidates"]
    assert best["prefill"] == "p0"
    assert best["held"] == {"prefill": 18 * BLOCK, "decode": 18 * BLOCK}
    assert best["terms"]["new"] == 2 * BLOCK
    assert best["terms"]["move"] == round(2 * BLOCK * cost.MOVE_SAME_HOST, 1)
    assert best["terms"]["leaves"] == cost.LEAVE_TOKENS, "its conversation began on p1"
    assert second["terms"]["new"] == 20 * BLOCK
    for candidate in (best, second):
        assert candidate["cost"] == pytest.approx(sum(candidate["terms"].values()), abs=0.3)
    assert best["cost"] <= second["cost"]
    again = setup.router.decide(prompt(20), setup.pool.served("a"), session=session).explain()
    assert again == told, "deterministic"


# Decoders that share a worker, and workers that prefill for themselves.


def sharing(*, aggregated: bool = False, replicas: int = 1) -> Setup:
    """A router before adapter workers of `x` and `y`."""
    setup = Setup(prefill=0 if aggregated else 1, replicas=0)
    adapters = (Adapter("x", "/x"), Adapter("y", "/y"))
    for number in range(replicas):
        worker = DecodeWorker(
            f"lora{number}", "http://host0:2", "base", adapters=adapters, aggregated=aggregated
        )
        setup.cache_index.add(setup.pool.add(worker).worker)
    setup.router = Router(
        setup.pool, setup.cache_index, is_aggregated=aggregated, clock=lambda: setup.now
    )
    return setup


@pytest.mark.parametrize("aggregated", [False, True])
def test_what_one_decoder_brought_in_is_the_others_too(aggregated: bool) -> None:
    setup = sharing(aggregated=aggregated)
    first = setup.run(prompt(8), "x")
    assert (first.new_tokens, first.shared_tokens) == (8 * BLOCK, 0)
    second = setup.run(prompt(10), "y")
    assert (second.new_tokens, second.shared_tokens) == (2 * BLOCK, 8 * BLOCK)
    assert second.moved_tokens == (0 if aggregated else 2 * BLOCK)
    third = setup.run(prompt(10), "x")
    assert (third.new_tokens, third.moved_tokens) == (0, 0)
    assert 2 * BLOCK <= third.shared_tokens < 3 * BLOCK, "the last block is not whole"
    assert (first.lora_name, second.lora_name) == ("x@1", "y@1")


def test_what_the_decode_worker_alone_holds_is_shared_too() -> None:
    setup = sharing()
    setup.run(prompt(8), "x")
    setup.cache_index.forget("p0")
    second = setup.run(prompt(8), "y")
    assert (second.cached_tokens, second.new_tokens, second.shared_tokens) == (0, 0, 8 * BLOCK)


def test_an_aggregated_worker_is_loaded_until_its_request_has_ended() -> None:
    setup = sharing(aggregated=True)
    (state,) = setup.pool.decode("x")
    route = setup.choose(prompt(8), "x")
    assert (route.prefill, route.prefills, route.decode) == (None, state, state)
    assert (state.load.requests, state.load.queued_tokens) == (1, 8 * BLOCK)
    assert setup.choose(prompt(8), "x").new_tokens == 0, "it is on its way"
    route.handed_over()
    assert (state.load.requests, state.load.queued_tokens) == (2, 0)
    assert route.needs(state)
    route.release()
    assert (state.load.requests, route.needs(state)) == (1, False)


def test_an_aggregated_worker_is_left_when_its_queue_is_too_long() -> None:
    setup = sharing(aggregated=True, replicas=2)
    home = setup.run(prompt(10), "x").decode
    for queue, stays in ((19 * BLOCK, True), (21 * BLOCK, False)):
        home.load.queued_tokens = queue
        assert (setup.choose(prompt(10), "y").decode is home) == stays, queue
        home.load.requests = 0


def test_a_conversation_stays_on_its_aggregated_worker() -> None:
    setup = sharing(aggregated=True, replicas=2)
    session = Session("s")
    home = setup.choose(prompt(1), "x", session=session).decode
    home.load.queued_tokens = int(cost.LEAVE_TOKENS)
    assert setup.choose(prompt(1, "z"), "y", session=session).decode is home
