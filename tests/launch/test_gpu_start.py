"""How a plan for GPUs is started, up to the fork server: with what, and in which order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ps_sglang.launch import processes as processes_module
from ps_sglang.launch.cluster import Cluster
from ps_sglang.launch.flags import value_of
from ps_sglang.launch.gpus import nvml
from ps_sglang.launch.messages import Start, StartMethod
from ps_sglang.launch.prepare import Plan, prepare
from ps_sglang.launch.processes import GATEWAY, Processes
from ps_sglang.launch.spec import ClusterSpec


class RecordingForkServer:
    """In the fork server's place: it takes commands, and starts nothing."""

    def __init__(self, *_: object) -> None:
        self.started: list[Start] = []
        self.exits: dict[str, int] = {}
        self.pids: dict[str, int] = {}
        self.gone = False

    def start(self, command: Start) -> None:
        self.started.append(command)

    def wait_for(self, condition: Callable[[], bool], timeout_s: float) -> None:
        condition()

    def stop(self, name: str, grace_s: float) -> None: ...

    def close(self, grace_s: float) -> None: ...


@pytest.fixture
def plan(tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Three workers on two GPUs, planned on a description and then taken for what is there."""
    monkeypatch.setattr(processes_module, "ForkServerClient", RecordingForkServer)
    spec = ClusterSpec(
        str(tiny["base"]),
        (f"a={tiny['a']}", f"b={tiny['b']}"),
        gpus="2x24GB",
        dry_run=True,
        log_dir=tmp_path,
    )
    planned = prepare(spec)
    assert planned.gpus is not None
    monkeypatch.setattr(nvml, "free_bytes", lambda: {0: 20 * 10**9, 1: 12 * 10**9})
    there = replace(planned.gpus.machine, described=False)
    return replace(planned, gpus=replace(planned.gpus, machine=there))


def test_a_worker_gets_its_gpu_and_the_fraction_of_what_is_free(plan: Plan) -> None:
    assert plan.gpus is not None
    running = Processes(plan)
    try:
        running.start_worker("decode-a")
        [command] = running.link.started  # type: ignore[attr-defined]
    finally:
        running.close()
    assert command.start_method is StartMethod.EXEC
    assert command.env["CUDA_VISIBLE_DEVICES"] == "1"
    assert command.env["MC_INTRANODE_NVLINK"] == "1"
    fraction = plan.gpus.budgets["decode-a"].fraction(12 * 10**9)
    assert float(value_of(command.argv, "--mem-fraction-static") or 0) == fraction
    assert fraction != plan.gpus.budgets["decode-a"].fraction(24 * 10**9)


def test_the_second_worker_of_a_gpu_waits_for_the_first(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def probe(self: Processes, name: str) -> Any:
        events.append(f"{name} ready")
        return SimpleNamespace(ready=True, cancel=lambda: None)

    def start(self: Processes, name: str) -> None:
        events.append(f"{name} started")

    class Stop(Exception):
        pass

    def start_gateway(self: Processes, name: str = GATEWAY) -> None:
        events.append(name)
        raise Stop

    monkeypatch.setattr(Processes, "probe", probe)
    monkeypatch.setattr(Processes, "start_worker", start)
    monkeypatch.setattr(Processes, "start_gateway", start_gateway)
    lines: list[str] = []
    with pytest.raises(Stop):
        Cluster.start_plan(plan, lines.append)
    assert events == [
        "prefill-0 started",
        "decode-a started",
        "prefill-0 ready",
        "decode-a ready",
        "decode-b started",
        GATEWAY,
    ]
    assert any(line.startswith("decode-b: GPU ") for line in lines)
