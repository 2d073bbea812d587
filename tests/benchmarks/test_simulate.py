import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from benchmarks.agents.workload import Session, Shape, Turn, sessions, work
from benchmarks.simulate.__main__ import main, summary
from benchmarks.simulate.figure import draw
from benchmarks.simulate.hardware import DEVICES, MODELS, Measured, Roofline, measured
from benchmarks.simulate.request import PAGE
from benchmarks.simulate.simulation import SYSTEMS, Cluster, Simulator, percentiles
from benchmarks.simulate.studies import quick
from ps_sglang.errors import UsageError

ENDLESS = Measured(
    pool_tokens=100_000_000,
    prefill_step=1e-3,
    prefill_token=5e-5,
    decode_step=1e-2,
    decode_request=1e-4,
    move_fixed=1e-3,
    move_token=1e-6,
)
SMALL = msgspec.structs.replace(ENDLESS, pool_tokens=60_000)
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
            for member in domain._pool:
                load = member.load
                assert (load.requests, load.queued_tokens, load.moving_tokens) == (0, 0, 0)
            # The gateway's index mirrors the trees.
            for name, worker in (domain.prefill | domain.decode).items():
                assert domain._holdings.source(name).tokens == len(worker.tree) * PAGE
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
    simulator = Simulator(Cluster("shared", 1, 1), steps)
    figures = simulator.run(trace)
    assert figures["computed_tokens"] == count * 8192
    waited = sum(one.first for one in simulator.ended) / count - service - 1e-6
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
    ended = {one.session.number: one.asked for one in simulator.ended}
    assert ended[0] == pytest.approx(sum(alone) + sum(both) + last)
    assert ended[1] == pytest.approx(sum(alone) + sum(both) - 1.5)


def test_no_more_sessions_at_a_time_than_allowed() -> None:
    figures = Simulator(Cluster("shared", 4, 4), ENDLESS, most=5).run(TRACE)
    assert figures["sessions_peak"] == 5
    assert figures["requests"] == sum(len(one.turns) for one in TRACE)


def test_step_times_follow_published_figures() -> None:
    steps = Roofline(MODELS["llama-3.1-8b"], DEVICES["a100-80g"])
    assert MODELS["llama-3.1-8b"].kv_bytes == 131_072
    assert steps.pool_tokens == int((0.88 * 80e9 - 2 * 8.03e9) / 131_072)
    # Two FLOPs a parameter and token at half of 312 TFLOPS.
    assert steps.prefill(8192, 0) == pytest.approx(1e-3 + 2 * 8.03e9 * 8192 / 156e12)
    assert steps.decode(1, 0) == pytest.approx(1e-3 + 16.06e9 / (0.7 * 2.039e12))


def test_measurements_are_read_and_refused(tmp_path: Path) -> None:
    path = tmp_path / "steps.json"
    path.write_bytes(msgspec.json.encode(ENDLESS))
    assert measured(path) == ENDLESS
    for content, said in (
        ("{", "no measurements that can be used"),
        (msgspec.json.encode(msgspec.structs.replace(ENDLESS, pool_tokens=0)).decode(), "at least"),
        (msgspec.json.encode(msgspec.structs.replace(ENDLESS, move_token=-1)).decode(), "below 0"),
    ):
        path.write_text(content)
        with pytest.raises(UsageError, match=said):
            measured(path)
    with pytest.raises(UsageError, match="no measurements"):
        measured(tmp_path / "absent.json")


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


def test_quick_ends_with_its_summary_and_draws(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    runs = [replace(case, count=20).run() for case in quick(ENDLESS)]
    assert last.startswith("simulate: N=4 throughput ")
    assert summary(runs).startswith("simulate: N=4 throughput ")
    picture = draw(runs, "rates")
    assert picture is not None
    assert picture.count("<polyline") == 9
    assert draw(runs, "concurrency") is None


def test_what_two_requests_want_at_once_is_computed_once() -> None:
    # The first one keeps the worker busy, so that the others could begin in one batch.
    trace = [
        Session(number, 0.0, system, (Turn(0, 65, 1, 0.0),))
        for number, system in enumerate((0, 2048, 2048))
    ]
    figures = Simulator(Cluster("shared", 1, 1), ENDLESS).run(trace)
    assert figures["computed_tokens"] == 64 + 2048 + 2 * 64
