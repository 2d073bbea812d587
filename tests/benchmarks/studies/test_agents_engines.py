"""The agents benchmark on real engines: same work asked of both, and counted to the token."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from benchmarks.sessions.drive import Load
from benchmarks.sessions.workload import Shape, work
from benchmarks.studies.agents.models import checkpoints
from benchmarks.studies.agents.samplers import Grid
from benchmarks.studies.agents.steps import Found, costs
from benchmarks.studies.agents.steps import measure as measure_steps
from benchmarks.studies.agents.study import Study, measure
from benchmarks.studies.agents.systems import OURS, STOCK_PD, STOCK_UNIFIED, SYSTEMS, ours
from benchmarks.studies.simulate.hardware import measured

DECODERS = 2
STUDY = Study(
    shape=Shape(
        decoders=DECODERS, steps=2, system_tokens=200, task_tokens=(20, 40),
        observation_tokens=50, observation_most=200, output_tokens=(2, 6), pause=0.0,
    ),
    model="tiny", systems=(OURS, STOCK_PD), count=1, rates=(), parts=(), concurrency=(1,),
    repeats=1, pool=4096,
)  # fmt: skip
LOAD = Load(concurrent=1)
ROUTED = pytest.param(
    STOCK_PD,
    marks=pytest.mark.skipif(find_spec("sglang_router") is None, reason="needs sglang-router"),
)


@pytest.mark.engine
def test_stock_keeps_what_lies_below_sglang_and_nothing_else() -> None:
    from benchmarks.studies.agents.stock_fork_server import stock_hooks

    assert {hook.target.rpartition(".")[2] for hook in stock_hooks()} == {
        "TransferBackend",
        "get_kv_class",
        "create_sender",
        "update_status",
        "init_idle_sleeper",
        "on_idle",
        "_send_kv_metadata",
    }


@pytest.mark.engine
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [OURS, ROUTED, STOCK_UNIFIED])
def test_one_session_costs_what_the_workload_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PS_SGLANG_HOME", str(tmp_path))
    models = checkpoints(STUDY.model, DECODERS)
    with SYSTEMS[name](models, STUDY.pool, tmp_path / "logs") as running:
        # The second time from empty caches again.
        first, second = (measure(running, STUDY, models, LOAD) for _ in range(2))
    trace = STUDY.trace(LOAD)
    allowed = work(trace)
    for found in (first, second):
        assert found["failures"] == []
        assert found["output_tokens"] == allowed.output
        assert found["turns"] == len(trace[0].turns)
        assert found["evicted_tokens"] == 0
        for pool in found["pool"].values():
            assert 0 <= pool["mean"] <= pool["peak"] <= 1
        told = {"prefill", "pull", "first_step", "decode", "other"} if name == OURS else set()
        assert told <= found["stages_s"].keys()
        assert bool(told) == bool(found["stages_s"])
        if name == OURS:
            assert found["prefilled_tokens"] == allowed.shared
        elif name == STOCK_PD:
            # Stock prefills boundary tokens too, which costs each decoder's tree one token more.
            assert found["prefilled_tokens"] == allowed.per_model + DECODERS
        else:
            # A plain server also keeps what it has decoded itself.
            assert allowed.shared < found["prefilled_tokens"] < allowed.per_model
    roles = {"unified": 2} if name == STOCK_UNIFIED else {"prefill": 1, "decode": 1}
    assert {role: pool["capacity"] for role, pool in first["pool"].items()} == {
        role: pools * DECODERS * STUDY.pool for role, pools in roles.items()
    }
    if name != STOCK_UNIFIED:
        assert first["moved_bytes"] == second["moved_bytes"] > 0


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_step_costs_are_those_of_the_engines_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PS_SGLANG_HOME", str(tmp_path))
    models = checkpoints("tiny", 1)
    grid = Grid((0, 64), (16, 256), (100,), (1, 2), (50, 500), 4, 1, pause=0.0, idle=1.0)
    found = Found()
    with ours(models, 4096, tmp_path / "logs") as running:
        found.add(measure_steps(running, range(models.first, models.vocabulary), grid))
    prefills = [counts for counts, _ in found.samples["prefill"]]
    assert [(one["tokens"], one["pairs"]) for one in prefills] == [
        (16, 16 * 8), (256, 256 * 128), (64, 64 * 32), (16, 16 * 72), (64, 64 * 32),
        (256, 256 * 192),
    ]  # fmt: skip
    assert [counts["requests"] for counts, _ in found.samples["decode"]] == [1, 2]
    assert [counts["context"] for counts, _ in found.samples["decode"]] == [102, 204]
    assert [counts["tokens"] for counts, _ in found.samples["move"]] == [50, 500]
    assert all(seconds > 0 for taken in found.samples.values() for _, seconds in taken)
    assert min(found.cores["prefill"], found.cores["decode"]) > 0
    costs_file = tmp_path / "steps.json"
    costs_file.write_text(json.dumps(costs(found, 4096)["measured"]))
    read = measured(costs_file)
    assert (read.pool_tokens, read.cores) == (4096, os.cpu_count())
    assert {"prefill": read.prefill_cores, "decode": read.decode_cores} == found.cores
    assert 0 < read.idle < 0.5
    # The gateway and the client work for some milliseconds, not for the seconds of a start.
    assert 0 < read.request < 0.5


def processes_with(entry: str) -> list[psutil.Process]:
    """Those that have it in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            environ = Path(f"/proc/{process.pid}/environ").read_bytes()
        except OSError:
            continue
        if entry.encode() in environ.split(b"\0"):
            found.append(process)
    return found


@pytest.mark.engine
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "number", "status"),
    [
        pytest.param(STOCK_PD, signal.SIGTERM, 143, marks=ROUTED.marks),
        (OURS, signal.SIGINT, 130),
    ],
)
def test_a_signal_ends_all_that_was_started(
    name: str, number: signal.Signals, status: int, tmp_path: Path
) -> None:
    home = f"PS_SGLANG_HOME={tmp_path / 'home'}"
    (tmp_path / "temporary").mkdir()
    environ = os.environ | {"TMPDIR": str(tmp_path / "temporary")} | dict([home.split("=", 1)])
    options = ["--systems", name, "--model", "tiny", "--decoders", "1", "--concurrency", "1"]
    benchmark = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.studies.agents", *options, "--sessions", "100"],
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert benchmark.stdout is not None
        assert any(" turns" in line for line in benchmark.stdout)  # it is at work
        assert len(processes_with(home)) > 3
        benchmark.send_signal(number)
        benchmark.stdout.read()
        assert benchmark.wait() == status
        psutil.wait_procs(processes_with(home), 10)
        assert processes_with(home) == []
        assert list((tmp_path / "temporary").iterdir()) == []
    finally:
        benchmark.kill()
        benchmark.wait()
        if benchmark.stdout is not None:
            benchmark.stdout.close()
