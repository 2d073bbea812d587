"""What the agents benchmark makes of times and counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.sessions.counters import Counts, total
from benchmarks.sessions.drive import Load, Run, TurnDone
from benchmarks.sessions.measures import measures, percentiles, stages, sustained
from benchmarks.sessions.workload import Session, Shape, Turn
from benchmarks.studies.agents.args import parse, study_of
from benchmarks.studies.agents.headline import headline, last_line
from benchmarks.studies.agents.study import Study
from ps_sglang.errors import UsageError

WORK = {
    "shared": {"passes": 2, "tokens": 100, "pairs": 1000},
    "per_model": {"passes": 4, "tokens": 300, "pairs": 4000},
    "decode": {"tokens": 10, "context": 500},
}
COSTS = {
    "measured": {
        "pool_tokens": 1, "prefill_step": 1.0, "prefill_token": 0.1, "prefill_product": 0.01,
        "decode_step": 4.0, "decode_request": 1.0, "decode_context_token": 0.02,
        "move_fixed": 0.0, "move_token": 0.0, "prefill_cores": 2.0, "decode_cores": 0.5,
    },
}  # fmt: skip

METRICS = """\
# HELP sglang:realtime_tokens_total Total
sglang:realtime_tokens_total{mode="prefill_compute",model_name="a, b"} 401.0
sglang:realtime_tokens_total{model_name="a, b",mode="prefill_cache"} 650.0
sglang:realtime_tokens_total_created{mode="prefill_compute"} 7.0
ps_sglang_transfer_bytes_total{path="shm"} 6.144e+05
ps_sglang_transfer_bytes_total{path="tcp"} 1.0
process_max_fds 1024.0
"""


@pytest.mark.parametrize(
    ("metric", "labels", "expected"),
    [
        ("sglang:realtime_tokens_total", {"mode": "prefill_compute"}, 401),
        ("sglang:realtime_tokens_total", {}, 1051),
        ("ps_sglang_transfer_bytes_total", {}, 614_401),
        ("process_max_fds", {}, 1024),
        ("process_max_fds", {"mode": "x"}, 0),
        ("absent", {}, 0),
    ],
)
def test_samples_are_summed_by_name_and_labels(
    metric: str, labels: dict[str, str], expected: float
) -> None:
    assert total(METRICS, metric, labels) == expected


def test_counts_are_differences() -> None:
    before = Counts(Counter(prefilled_tokens=5, moved_bytes=0), {"prefill": 1.0})
    after = Counts(Counter(prefilled_tokens=12, moved_bytes=0), {"prefill": 1.5})
    assert after.since(before) == Counts(
        Counter(prefilled_tokens=7, moved_bytes=0), {"prefill": 0.5}
    )


def test_percentiles_interpolate() -> None:
    found = percentiles([float(value) for value in range(101)])
    assert found == pytest.approx({"mean": 50, "p50": 50, "p95": 95, "p99": 99})
    assert percentiles([3.0]) == {"mean": 3, "p50": 3, "p95": 3, "p99": 3}
    assert percentiles([]) == {}


def test_measures_of_a_session() -> None:
    trace = [Session(0, 1.0, 10, (Turn(0, 5, 3, 0.0), Turn(1, 2, 1, 0.0)))]
    run = Run(
        turns=[TurnDone(0, 0, 15, 3, 1.0, 2.0, 4.0), TurnDone(0, 1, 20, 1, 4.0, 5.0, 5.0)],
        sessions=[(1.0, 5.0)],
        seconds=5.0,
    )
    assert stages(run.turns) == {}
    spent = Counts(Counter(prefilled_tokens=19, moved_bytes=640), {"prefill": 3.0})
    found = measures(trace, Load(rate=1.0), run, spent)
    assert found["turn_s"]["p50"] == pytest.approx(2.0)  # 3 s and 1 s
    assert found["first_token_s"]["p50"] == pytest.approx(1.0)
    assert found["between_tokens_s"]["p50"] == pytest.approx(1.0)  # of the turn that has two
    assert found["session_s"]["p50"] == 4.0
    assert found["drain_s"] == 4.0
    assert found["output_tokens_per_s"] == pytest.approx(4 / 5)
    assert found["total_tokens_per_s"] == pytest.approx(39 / 5)
    assert found["hit_ratio"] == pytest.approx(1 - 19 / 35)
    assert found["allowed"]["shared_tokens"] == 19  # 14 of the first prompt, 5 more of the second
    assert found["allowed"]["per_model_tokens"] == 33
    assert found["moved_bytes"] == 640
    assert found["decoding"] == pytest.approx(2 / 5)
    assert found["cpu_s_per_session"] == {"prefill": 3.0}


def test_stages_are_those_that_workers_tell_and_the_rest() -> None:
    told: tuple[dict[str, float], ...] = (
        {"pull": 0.2, "decode": 0.5},
        {"prefill": 1.0, "pull": 0.0, "decode": 0.5},
        {},
    )
    turns = [TurnDone(0, 0, 9, 1, 1.0, 2.0, 3.0, one) for one in told]
    assert stages(turns) == {
        "pull": {"mean": pytest.approx(0.1), "p95": pytest.approx(0.19)},
        "decode": {"mean": pytest.approx(0.5), "p95": pytest.approx(0.5)},
        "other": {"mean": pytest.approx(0.9), "p95": pytest.approx(1.26)},
        "prefill": {"mean": pytest.approx(0.5), "p95": pytest.approx(0.95)},
    }


def row(system: str, rate: float, *, drain: float = 1.0, **more: Any) -> dict[str, Any]:
    values = {"out": 10.0, "p95": 1.0, "prefilled": 100} | more
    return {
        "system": system,
        "load": {"rate": rate, "concurrent": None},
        "drain_s": drain,
        "session_s": {"p95": 2.0},
        "turn_s": {"p50": values["p95"] / 2, "p95": values["p95"]},
        "allowed": {"per_model_tokens": 330, "shared_tokens": 100, "shared_hit": 0.9},
        "output_tokens_per_s": values["out"],
        "prefilled_tokens": values["prefilled"],
        "hit_ratio": 0.8,
        "decoding": 4.0,
    }


def study_with(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A study of two decoders; see `test_agents_ideal` for its work."""
    return {"study": {"shape": {"decoders": 2}}, "work": WORK, "runs": rows}


def test_a_rate_is_sustained_while_its_queue_drains_at_once() -> None:
    rows = [row("x", 1.0, drain=1.9), row("x", 2.0, drain=3.9), row("x", 4.0, drain=4.1)]
    rows += [row("x", 4.0, drain=4.2), row("x", 4.0, drain=0.1)]
    assert sustained(rows) == [1.0, 2.0]
    assert sustained([]) == []


def test_headline_compares_medians_where_stock_still_keeps_up() -> None:
    rows = []
    for repeat in (1.0, 1.1, 9.0):  # the last one disturbed
        rows += [
            row("stock_pd", 1.0, p95=8 * repeat, out=10 / repeat, prefilled=300),
            row("stock_pd", 2.0, p95=50, drain=60, out=9.0, prefilled=300),
            row("ps_sglang", 1.0, p95=2 * repeat, out=10.0, prefilled=100),
            row("ps_sglang", 2.0, p95=3, out=30.0, prefilled=100),
        ]
    found = headline(study_with(rows))
    assert found == {
        "ideal_throughput": None,
        "hit": pytest.approx(0.8 / 0.9),
        "throughput": pytest.approx(30 / (10 / 1.1)),
        "prefilled": 3.0,
        "ideal_prefilled": 3.3,
        "rate": 1.0,
        "idle_p50": pytest.approx(4.0),
        "p95": pytest.approx(4.0),
    }
    assert last_line(3, found) == (
        "agents: N=3 throughput 3.3x, p95 4.0x lower, prefill tokens 3.0x fewer than stock PD"
    )


def test_no_p95_where_stock_keeps_up_at_no_rate() -> None:
    rows = [row("stock_pd", 1.0, drain=99), row("ps_sglang", 1.0)]
    found = headline(study_with(rows))
    assert found["p95"] is None
    assert "p95 not compared" in last_line(2, found)


def test_no_throughput_where_stock_keeps_up_at_every_rate() -> None:
    rows = [row("stock_pd", 1.0), row("ps_sglang", 1.0)]
    found = headline({**study_with(rows), "steps": COSTS})
    assert (found["throughput"], found["ideal_throughput"]) == (None, None)
    assert "throughput not compared" in last_line(2, found)
    rows[0]["load"]["rate"] = None  # all sessions at once
    assert headline(study_with(rows))["throughput"] == 1.0


def test_the_ideal_counts_as_many_requests_in_a_step_as_there_were() -> None:
    rows = [row("stock_pd", 1.0, drain=99), row("ps_sglang", 1.0)]
    # 4 turns at a time on 2 decoders: each token costs 4/2 + 1, and its context.
    decode = 0.5 * (10 * 3 + 500 * 0.02)
    own, shared = 2 * (4 + 30 + 40), 2 * (2 + 10 + 10)
    shown = headline({**study_with(rows), "steps": COSTS})
    assert shown["ideal_throughput"] == pytest.approx((own + decode) / (shared + decode))


def quick(*words: str) -> Study:
    return study_of(parse(["--quick", *words]))


def test_rates_given_are_not_chosen() -> None:
    assert quick().parts
    assert not quick("--rates", "0.5").parts
    assert not quick("--concurrency", "1", "2").parts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": 1000}, "a larger --pool"),
        ({"systems": ("stock",)}, "no system 'stock'"),
        ({"repeats": 0}, "at least 1"),
        ({"rates": (1.0, 0.0)}, "a rate or a part of one is 0"),
        ({"parts": (0.5, -1.0)}, "a rate or a part of one is -1"),
        ({"parts": ()}, "no loads"),
        ({"shape": Shape(output_tokens=(5, 2))}, "output tokens from 5 to 2"),
    ],
)
def test_a_study_that_cannot_work_is_refused(change: dict[str, Any], message: str) -> None:
    quick().check()
    with pytest.raises(UsageError, match=message):
        replace(quick(), **change).check()
