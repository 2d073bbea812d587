"""Predictions beside the agents benchmark's saved runs."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.sessions.drive import Load
from benchmarks.sessions.workload import Shape
from benchmarks.studies.agents.study import Study
from benchmarks.studies.simulate.__main__ import main
from benchmarks.studies.simulate.hardware import Measured
from benchmarks.studies.simulate.simulation import Cluster, Simulator
from benchmarks.studies.simulate.validate import compare
from ps_sglang.errors import UsageError

STEPS = Measured(
    pool_tokens=1,  # the study says how large the pools are
    prefill_step=5e-3,
    prefill_token=5e-5,
    decode_step=1e-2,
    decode_request=1e-3,
    move_fixed=1e-3,
    move_token=1e-6,
    cores=2,
    request=1e-3,
    page=1,
)
POOL = 2500  # so small that pages are evicted
STUDY = Study(
    shape=Shape(decoders=3, steps=2, system_tokens=500, observation_most=600),
    model="small",
    systems=("ps_sglang", "stock_pd"),
    count=6,
    rates=(2.0,),
    parts=(),
    concurrency=(3,),
    repeats=3,
    pool=POOL,
    seed=7,
)
SYSTEMS = {
    "ps_sglang": Cluster("shared", 3, 1, prefill_pool=3 * POOL, decode_pool=POOL, page=1),
    "stock_pd": Cluster("stock-pd", 3, 3, prefill_pool=POOL, decode_pool=POOL, page=1),
}
LOADS = (Load(), Load(rate=2.0), Load(concurrent=3))


def saved(folder: Path, study: Study = STUDY, wrong: float = 1.0) -> Path:
    """A study as the benchmark saves it, of an engine that is `wrong` times slower than STEPS."""
    runs: list[dict[str, Any]] = []
    for repeat, noise in enumerate((0.5, 1.0, 3.0)):  # the median counts
        for system, cluster in SYSTEMS.items():
            for load in LOADS:
                trace = STUDY.trace(load)
                found = Simulator(cluster, STEPS, load.concurrent).run(trace)
                p95, seconds = found["turn_s"]["p95"], found["seconds"]
                # The benchmark's clock begins before the first session comes.
                tokens = found["output_tokens_per_s"] * seconds / (trace[0].start + seconds)
                runs.append(
                    {
                        "system": system,
                        "repeat": repeat,
                        "load": asdict(load),
                        "failures": [],
                        "sessions": study.count,
                        "turn_s": {"p95": p95 * wrong * noise},
                        "output_tokens_per_s": tokens / wrong / noise,
                        "hit_ratio": found["hit_ratio"],
                    }
                )
    runs.append({**runs[0], "system": "unshared"})
    runs.append({**runs[0], "failures": ["a session failed"], "turn_s": {}})
    path = folder / "agents.json"
    steps = {"measured": msgspec.to_builtins(STEPS)}
    kept = {"study": asdict(study), "runs": runs, "steps": steps}
    path.write_text(json.dumps({"studies": {"react-small-n3": kept}}))
    return path


def test_the_same_sessions_pools_and_loads_are_predicted(tmp_path: Path) -> None:
    rows = compare(saved(tmp_path))
    assert [(one.system, one.load, one.value) for one in rows] == [
        (system, load, value)
        for system in ("ps_sglang", "stock_pd")
        for load in map(str, LOADS)
        for value in ("p95", "tokens/s")
    ]
    assert [one.error for one in rows] == pytest.approx([0.0] * 12)
    assert {one.study for one in rows} == {"react-small-n3"}
    slower = compare(saved(tmp_path, wrong=1.25))
    assert [one.error for one in slower] == pytest.approx([-0.2, 0.25] * 6)


def test_the_command_says_how_far_off_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Its starts measure from half to three times the median, see `saved`.
    for wrong, status, within, between, worst in (
        (1.1, 0, 12, 0, "+10.0%"),
        (1.5, 1, 0, 12, "+50.0%"),
        (4.0, 1, 0, 0, "+300.0%"),
    ):
        path = saved(tmp_path, wrong=wrong)
        assert main(["--validate", str(path)]) == status
        out = capsys.readouterr().out.splitlines()
        assert len(out) == 13
        assert out[-1] == (
            f"simulate: {within} of 12 predictions within 15%, {between} of the others between "
            f"what the starts measured, the worst is {worst} off"
        )
        assert out[0].startswith("react-small-n3, ps_sglang")


def test_files_that_cannot_be_validated_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = tmp_path / "steps.json"
    steps.write_bytes(msgspec.json.encode(STEPS))
    assert main(["--validate", str(saved(tmp_path)), "--measured", str(steps)]) == 2
    assert "no --measured" in capsys.readouterr().err
    kept = json.loads(saved(tmp_path).read_text())
    del kept["studies"]["react-small-n3"]["steps"]["measured"]["prefill_token"]
    for content in (
        "{",
        "{}",
        "[]",
        json.dumps({"studies": {"a": {"study": {}}}}),
        json.dumps(kept),
    ):
        path = tmp_path / "agents.json"
        path.write_text(content)
        with pytest.raises(UsageError, match=r"has no runs of benchmarks\.studies\.agents"):
            compare(path)
    path.write_text(json.dumps({"studies": {}}))
    with pytest.raises(UsageError, match="no runs of ps_sglang or stock_pd with a workload of"):
        compare(path)
    # Real conversations are not drawn from a shape: their lengths are not in the file.
    path.unlink()
    text = replace(STUDY, shape=replace(STUDY.shape, kind="text"))
    with pytest.raises(UsageError, match="with a workload of react or reflexion"):
        compare(saved(tmp_path, text))
