"""The simulator against arithmetic: queues, conservation of tokens, what a trace allows."""

from __future__ import annotations

import json

import msgspec
import pytest

from benchmarks.sessions.workload import Session, Shape, Turn, sessions, work
from benchmarks.studies.simulate.hardware import DEVICES, MODELS, Measured, Roofline
from benchmarks.studies.simulate.request import PAGE
from benchmarks.studies.simulate.simulation import SYSTEMS, Cluster, Simulator, System, percentiles
from ps_sglang.errors import UsageError
from tests.benchmarks.studies.step_costs import SMALL

ENDLESS = msgspec.structs.replace(SMALL, pool_tokens=100_000_000)
TRACE = sessions(Shape(), 2.0, 40, 1)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("steps", [ENDLESS, SMALL], ids=["endless", "small"])
def test_runs_are_equal_to_the_byte_and_leave_nothing(system: str, steps: Measured) -> None:
    texts = set()
    for _ in range(2):
        simulator = Simulator(Cluster(system, 4, 4), steps)  # type: ignore[arg-type]
        texts.add(json.dumps(simulator.run(TRACE)))
        for domain in simulator._domains:
            for worker in domain.workers():
                assert worker._reserved == 0
                assert not any(worker.tree._locks.values())
                assert (len(worker._waiting), worker._begun, worker._decoding) == (0, [], [])
            for worker_state in domain._pool:
                load = worker_state.load
                assert (load.requests, load.queued_tokens, load.moving_tokens) == (0, 0, 0)
            # The gateway's index mirrors the trees.
            for name, worker in (domain.prefill | domain.decode).items():
                assert domain._cache_index.source(name).tokens == len(worker.tree) * PAGE
    assert len(texts) == 1


@pytest.mark.parametrize("steps", [ENDLESS, SMALL], ids=["endless", "small"])
@pytest.mark.parametrize("host", [0, 1_000_000])
def test_tokens_in_are_computed_held_or_loaded(steps: Measured, host: int) -> None:
    simulator = Simulator(Cluster("shared", 4, 2, host_tokens=host), steps)
    figures = simulator.run(TRACE)
    for one in simulator.ended:
        assert one.done in (0, one.base)
        assert 0 <= one.computed + one.loaded <= one.base
    assert figures["prompt_tokens"] == work(TRACE).prompt
    assert figures["requests"] == sum(len(one.turns) for one in TRACE)
    assert (figures["loaded_tokens"] > 0) == (host > 0 and steps is SMALL)


def test_a_shared_prefill_computes_exactly_what_the_trace_allows() -> None:
    figures = Simulator(Cluster("shared", 4, 1), ENDLESS).run(TRACE)
    assert figures["computed_tokens"] == work(TRACE, PAGE).shared


def test_stock_prefill_computes_it_for_each_model() -> None:
    figures = Simulator(Cluster("stock-pd", 4, 4), ENDLESS).run(TRACE)
    assert figures["computed_tokens"] == work(TRACE, PAGE).per_model


def test_one_prompt_for_all_models_is_computed_n_times_by_stock_and_once_by_us() -> None:
    turns = tuple(Turn(decoder, 1000 if decoder == 0 else 0, 1, 0.0) for decoder in range(4))
    trace = [Session(0, 0.0, 1049, turns)]
    ours, stock = (
        Simulator(Cluster(system, 4, 4), ENDLESS).run(trace) for system in ("shared", "stock-pd")
    )
    # 2048 tokens are whole pages; each turn adds one token to the page that is never full.
    assert ours["computed_tokens"] == 2048 + 1 + 2 + 3
    assert stock["computed_tokens"] == 4 * 2048 + 1 + 2 + 3


def test_a_full_pool_is_never_exceeded_and_costs_hits() -> None:
    simulator = Simulator(Cluster("shared", 4, 1), SMALL)
    figures = simulator.run(TRACE)
    assert figures["prefill_pool_peak"] <= 1
    assert figures["hit_ratio"] < work(TRACE, PAGE).shared_hit


def test_waiting_for_prefill_is_that_of_an_md1_queue() -> None:
    # One prompt a session, all different, each a batch of its own: Poisson in, constant service.
    service, load, count = 0.1, 0.7, 6000
    steps = msgspec.structs.replace(
        ENDLESS, prefill_step=0.0, prefill_token=service / 8192, move_fixed=0.0, move_token=0.0
    )
    steps = msgspec.structs.replace(steps, decode_step=1e-6, decode_request=0.0)
    rate = load / service
    trace = [
        Session(one.number, one.start, 0, (Turn(0, 8193, 1, 0.0),))
        for one in sessions(Shape(), rate, count, 2)
    ]
    simulator = Simulator(Cluster("shared", 1, 1, page=1024), steps)
    figures = simulator.run(trace)
    assert figures["computed_tokens"] == count * 8192
    waited = sum(one.first - one.asked for one in simulator.ended) / count - service - 1e-6
    expected = load * service / (2 * (1 - load))  # Pollaczek and Khinchine
    assert waited == pytest.approx(expected, rel=0.08)
    assert figures["prefill_busy"] == pytest.approx(load, rel=0.05)


def test_decode_steps_taken_together_are_the_sum_of_steps() -> None:
    # Two requests of different lengths: the second joins at a step's boundary, the first leaves.
    steps = Measured(
        pool_tokens=1_000_000,
        prefill_step=0.0,
        prefill_token=0.0,
        decode_step=1.0,
        decode_request=0.25,
        move_fixed=0.0,
        move_token=0.0,
        decode_context_token=0.001,
    )
    trace = [
        Session(0, 0.0, 0, (Turn(0, 100, 5, 0.0),)),
        Session(1, 1.5, 0, (Turn(0, 200, 2, 0.0),)),
    ]
    simulator = Simulator(Cluster("shared", 1, 1), steps)
    simulator.run(trace)
    alone = [1.25 + 0.001 * (100 + step) for step in range(2)]  # the second ends after 1.5
    both = [1.5 + 0.001 * (100 + 2 + 200 + 2 * step) for step in range(2)]
    last = 1.25 + 0.001 * 104
    ended = {one.session.number: one.ended - one.asked for one in simulator.ended}
    assert ended[0] == pytest.approx(sum(alone) + sum(both) + last)
    assert ended[1] == pytest.approx(sum(alone) + sum(both) - 1.5)


def test_no_more_sessions_at_a_time_than_allowed() -> None:
    figures = Simulator(Cluster("shared", 4, 4), ENDLESS, most=5).run(TRACE)
    assert figures["sessions_peak"] == 5
    assert figures["requests"] == sum(len(one.turns) for one in TRACE)


def test_step_times_follow_published_figures() -> None:
    steps = Roofline(MODELS["llama-3.1-8b"], DEVICES["a100-80g"])
    assert MODELS["llama-3.1-8b"].kv_bytes == 131_072
    assert steps.pool_tokens == int((0.84 * 80e9 - 2 * 8.03e9) / 131_072)
    # Two FLOPs a parameter and token at 57 % of 312 TFLOPS.
    assert steps.prefill(8192, 0) == pytest.approx(2 * 8.03e9 * 8192 / 177.84e12)
    # gpt-fast saw 1,397 GB/s.
    assert steps.decode(1, 0) == pytest.approx(16.06e9 / 1397e9, rel=1e-3)
    # Mooncake saw 87 GB/s over four such adapters.
    assert steps.move(1000) - steps.move(0) == pytest.approx(131_072_000 / (87e9 / 4))


def test_what_cannot_be_a_cluster_is_refused() -> None:
    with pytest.raises(UsageError, match="3 prefill workers cannot be divided among 2 models"):
        Cluster("stock-pd", 2, 3)
    with pytest.raises(UsageError, match="at least one"):
        Cluster("shared", 2, 0)
    tiny = msgspec.structs.replace(ENDLESS, pool_tokens=640)
    with pytest.raises(UsageError, match="take a larger pool or shorter sessions"):
        Simulator(Cluster("shared", 4, 1), tiny).run(TRACE)


def test_percentiles_are_values_that_occurred() -> None:
    assert percentiles(list(range(1, 101))) == {"p50": 50, "p95": 95, "p99": 99}
    assert percentiles([3.0]) == {"p50": 3.0, "p95": 3.0, "p99": 3.0}
    assert percentiles([]) == {}


def test_what_two_requests_want_at_once_is_computed_once() -> None:
    # The first one keeps the worker busy, so that the others could begin in one batch.
    trace = [
        Session(number, 0.0, system, (Turn(0, 65, 1, 0.0),))
        for number, system in enumerate((0, 2048, 2048))
    ]
    figures = Simulator(Cluster("shared", 1, 1), ENDLESS).run(trace)
    assert figures["computed_tokens"] == 64 + 2048 + 2 * 64


@pytest.mark.parametrize(
    ("system", "others", "is_first"),
    [("shared", 20, True), ("stock-pd", 20, True), ("shared", 200, True), ("stock-pd", 200, False)],
)
def test_a_held_prefix_goes_first_and_in_a_long_queue_only_with_us(
    system: System, others: int, is_first: bool
) -> None:
    again = (Turn(0, 8193, 1, 0.0), Turn(0, 64, 1, 0.0))
    trace = [Session(0, 0.0, 0, again)]
    trace += [Session(one, 1e-3, 0, again[:1]) for one in range(1, others + 1)]
    simulator = Simulator(Cluster(system, 1, 1), ENDLESS)
    simulator.run(trace)
    order = [one.turn for one in sorted(simulator.ended, key=lambda one: one.first)]
    place = order.index(again[1])
    assert (place < 5) == is_first, place


@pytest.mark.parametrize(("system", "is_first"), [("shared", True), ("stock-pd", False)])
def test_room_goes_to_the_one_of_which_most_is_held_and_in_stock_to_the_first_to_come(
    system: System, is_first: bool
) -> None:
    again = (Turn(0, 8192, 8, 0.0), Turn(0, 64, 8, 0.0))
    trace = [Session(0, 0.0, 0, again)]
    trace += [Session(one, 1e-3, 0, again[:1]) for one in range(1, 21)]
    simulator = Simulator(Cluster(system, 1, 1, decode_pool=8448), ENDLESS)  # one at a time
    simulator.run(trace)
    order = [one.turn for one in sorted(simulator.ended, key=lambda one: one.ended)]
    assert order.index(again[1]) == (2 if is_first else 21)


def test_a_stock_prefill_gives_the_first_token_and_a_shared_one_does_not() -> None:
    steps = msgspec.structs.replace(
        ENDLESS, prefill_step=1.0, prefill_token=0.0, decode_step=0.25, decode_request=0.0,
        move_fixed=0.5, move_token=0.0,
    )  # fmt: skip
    turns = (Turn(0, 129, 3, 0.0), Turn(0, 129, 1, 0.0))
    times = {}
    for system in SYSTEMS:
        simulator = Simulator(Cluster(system, 1, 1), steps)
        simulator.run([Session(0, 0.0, 0, turns)])
        times[system] = [(one.first - one.asked, one.ended - one.asked) for one in simulator.ended]
    assert times == {
        "shared": [(1.75, 2.25), (1.75, 1.75)],
        "stock-pd": [(1.5, 2.0), (1.5, 1.5)],
        "unified": [(1.0, 1.5), (1.0, 1.0)],
    }


def test_a_window_leaves_out_warm_up_and_drain() -> None:
    # One session a second, each of one turn of half a second; the last is slow.
    trace = [Session(number, float(number), 0, (Turn(0, 2, 10, 0.0),)) for number in range(9)]
    # It asks again after the window, for very long.
    trace.append(Session(9, 9.0, 0, (Turn(0, 2, 1000, 0.0), Turn(0, 2, 2000, 0.0))))
    steps = msgspec.structs.replace(
        ENDLESS, prefill_step=0.0, prefill_token=0.0, decode_step=0.05, decode_request=0.0,
        move_fixed=0.0, move_token=0.0,
    )  # fmt: skip
    whole = Simulator(Cluster("shared", 1, 1), steps).run(trace)
    window = Simulator(Cluster("shared", 1, 1), steps).run(trace, 0.3)
    assert whole["seconds"] == window["seconds"] == pytest.approx(159.0)
    assert whole["output_tokens_per_s"] == pytest.approx(3090 / 159)
    # From the beginning of the fourth session, at 3 s, to that of the tenth.
    assert window["window"]["seconds"] == 6.0
    assert window["window"]["sessions_per_s"] == 1.0
    assert window["output_tokens_per_s"] == pytest.approx(10)
    assert window["decode_busy"] == pytest.approx(0.5)
    assert window["turn_s"]["p50"] == pytest.approx(0.5)
    # Whoever asks inside the window counts, however late the answer comes.
    assert window["turn_s"]["p99"] == pytest.approx(50.0)


def test_pages_have_any_size() -> None:
    for page in (1, 16):
        cluster = Cluster("shared", 4, 1, page=page)
        simulator = Simulator(cluster, ENDLESS)
        figures = simulator.run(TRACE[:5])
        assert figures["computed_tokens"] == work(TRACE[:5], page).shared
        (domain,) = simulator._domains
        for name, worker in (domain.prefill | domain.decode).items():
            assert domain._cache_index.source(name).tokens == len(worker.tree) * page


def test_links_are_busy_as_long_as_pages_move() -> None:
    steps = msgspec.structs.replace(ENDLESS, move_fixed=1.0, move_token=0.0)
    figures = Simulator(Cluster("shared", 4, 1), steps).run(TRACE[:3])
    # No turn finds its whole prompt at its decode worker.
    moved = sum(len(one.turns) for one in TRACE[:3])
    assert figures["prefill_link_busy"] * figures["seconds"] == pytest.approx(moved)
    assert figures["decode_link_busy"] * figures["seconds"] == pytest.approx(moved / 4)
