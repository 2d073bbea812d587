"""What dies or hangs is restarted, with a back-off and not for ever."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ps_sglang.errors import ServingEndedError
from ps_sglang.launch.membership import Membership
from ps_sglang.launch.processes import GATEWAY, Processes
from ps_sglang.launch.readiness import Probe
from ps_sglang.launch.restarts import LONGEST_S, SHORTEST_S, WINDOW_S, Restarts
from ps_sglang.launch.spec import BOOTSTRAP_FLAG, ClusterSpec, WorkerSpec
from ps_sglang.launch.supervisor import WEDGED_S, Supervisor
from tests.gateway.hand_clock import Clock
from tests.workers.test_membership import worker

READY_S = 100.0


class Link:
    """The fork server's client, without a fork server."""

    def __init__(self) -> None:
        self.exits: dict[str, int] = {}
        self.sent: list[Any] = []

    def send(self, command: Any) -> None:
        self.sent.append(command)

    def stop(self, name: str, grace_s: float) -> None:
        self.exits[name] = -signal.SIGKILL


class Standing(Processes):
    """Processes that only the test ends. `probes` are those that were begun, by name."""

    def __init__(self, folder: Path, workers: list[WorkerSpec]) -> None:
        self._workers = {worker.name: worker for worker in workers}
        # Of a plan it needs the ports that were asked for.
        self._plan = SimpleNamespace(spec=ClusterSpec("base", ("a",)))  # type: ignore[assignment]
        self.link = Link()  # type: ignore[assignment]
        self.folder = folder
        self.started: list[str] = []
        self.probes: dict[str, Probe] = {}

    def start_worker(self, name: str) -> None:
        del self.link.exits[name]
        port = self._workers[name].bootstrap_port
        self.started.append(f"{name} {port}" if port else name)

    def start_gateway(self, name: str = GATEWAY) -> None:
        del self.link.exits[name]
        self.started.append(name)

    def probe(self, name: str) -> Probe:
        self.probes[name] = Probe(name, lambda: False)
        return self.probes[name]

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


class Supervised:
    def __init__(self, folder: Path, most: int = 2, gateways: tuple[str, ...] = (GATEWAY,)) -> None:
        self.clock = Clock()
        self.lines: list[str] = []
        prefill = replace(
            worker("prefill-0", 1), bootstrap_port=2, argv=("--x", BOOTSTRAP_FLAG, "2", "--y")
        )
        workers = [prefill, worker("decode-a", 3)]
        self.processes = Standing(folder, workers)
        self.membership = Membership("http://h:1", workers, allow_unverified=False, named=True)
        self.supervisor = Supervisor(
            self.processes,
            self.membership,
            [*gateways, "prefill-0", "decode-a"],
            most=most,
            ready_s=READY_S,
            outlook=lambda: "still served: b",
            on_progress=self.lines.append,
            clock=self.clock,
        )

    def dies(self, name: str, status: int = -signal.SIGKILL) -> None:
        self.processes.link.exits[name] = status
        self.supervisor.look()

    def passes(self, seconds: float) -> None:
        self.clock.now += seconds
        self.supervisor.look()

    def comes_back(self, name: str) -> None:
        """A process that starts, or is suspected, answers."""
        self.processes.probes.pop(name)._answered.set()
        self.supervisor.look()

    def recovers(self, name: str) -> None:
        self.passes(LONGEST_S)
        self.comes_back(name)


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    supervised = Supervised(tmp_path)
    yield supervised
    supervised.membership.close()


def test_back_off_and_limit() -> None:
    restarts = Restarts(9)
    seconds = [restarts.died(float(now)) for now in range(10)]
    assert seconds[:3] == [SHORTEST_S, 2 * SHORTEST_S, 4 * SHORTEST_S]
    assert seconds[8:] == [LONGEST_S, None]
    # What is long ago counts no more.
    assert restarts.died(WINDOW_S + 20) == SHORTEST_S
    assert Restarts(0).died(0.0) is None


def test_a_dead_worker_is_restarted(supervised: Supervised) -> None:
    supervised.dies("decode-a")
    assert supervised.processes.started == []
    supervised.passes(SHORTEST_S)
    assert supervised.processes.started == ["decode-a"]
    supervised.passes(READY_S - 1)
    supervised.comes_back("decode-a")
    log = supervised.processes.log("decode-a")
    assert supervised.lines == [
        "decode-a was killed by SIGKILL; still served: b; restart 1 of 2 in 0.5 s. "
        f"Log: {log}",
        "decode-a is back after 99.0 s",
    ]  # fmt: skip


def test_a_prefill_worker_comes_back_with_another_bootstrap_server(
    supervised: Supervised,
) -> None:
    """Decode workers would take the new process for the dead one."""
    before = supervised.membership.members["prefill-0"]
    supervised.dies("prefill-0")
    assert "prefill-0" not in supervised.membership.members
    supervised.recovers("prefill-0")
    moved = supervised.processes.worker("prefill-0")
    assert moved.bootstrap_port not in (None, 2)
    assert moved.argv == ("--x", BOOTSTRAP_FLAG, str(moved.bootstrap_port), "--y")
    assert supervised.processes.started == [f"prefill-0 {moved.bootstrap_port}"]
    assert supervised.membership.members["prefill-0"] is not before


def test_the_gateway_is_restarted(supervised: Supervised) -> None:
    supervised.dies(GATEWAY, 1)
    supervised.passes(SHORTEST_S)
    assert supervised.processes.started == [GATEWAY]
    supervised.comes_back(GATEWAY)
    assert supervised.lines[0].startswith("gateway ended with 1; restart 1 of 2 in 0.5 s.")
    assert supervised.lines[1] == "gateway is back after 0.0 s"


def test_one_of_several_gateway_processes_is_restarted(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, most=1, gateways=(GATEWAY, "gateway-1"))
    supervised.dies("gateway-1", 1)
    supervised.passes(SHORTEST_S)
    assert supervised.processes.started == ["gateway-1"]
    supervised.comes_back("gateway-1")
    assert supervised.lines[0].startswith("gateway-1 ended with 1; restart 1 of 1 in 0.5 s.")
    supervised.dies("gateway-1", 1)
    assert "limit" in supervised.lines[-1], "the others serve on"


def test_one_of_several_gateway_processes_is_asked_time_and_again(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, gateways=(GATEWAY, "gateway-1"))
    for _ in range(2):
        supervised.passes(0)
        supervised.passes(WEDGED_S + 1)
        supervised.comes_back("gateway-1")
    assert supervised.lines == []
    supervised.passes(0)
    supervised.passes(WEDGED_S + 1)
    supervised.passes(WEDGED_S + 1)
    supervised.passes(0)
    assert supervised.lines[0].startswith("gateway-1 hangs, and was killed; restart 1 of 2")


def test_a_worker_that_dies_too_often_is_given_up(supervised: Supervised) -> None:
    for _ in range(2):
        supervised.dies("decode-a")
        supervised.recovers("decode-a")
    supervised.dies("decode-a")
    assert "and 2 restarts in ten minutes are the limit; still served: b" in supervised.lines[-1]
    assert "decode-a" not in supervised.membership.members
    supervised.passes(2 * WINDOW_S)
    assert supervised.processes.started == ["decode-a"] * 2


@pytest.mark.parametrize("names", [[GATEWAY], ["prefill-0", "decode-a"]])
def test_nothing_is_left(tmp_path: Path, names: list[str]) -> None:
    supervised = Supervised(tmp_path, most=0)
    *others, last = names
    for name in others:
        supervised.dies(name)
    with pytest.raises(ServingEndedError, match=f"{last} was killed by SIGKILL, and 0 restarts"):
        supervised.dies(last)


def test_one_that_does_not_get_ready_is_killed_and_tried_again(supervised: Supervised) -> None:
    supervised.dies("decode-a")
    supervised.passes(SHORTEST_S)
    supervised.passes(READY_S + 1)
    supervised.passes(0)
    assert "decode-a was not ready within 100 s, and was killed; still" in supervised.lines[-1]
    supervised.passes(LONGEST_S)
    assert supervised.processes.started == ["decode-a"] * 2


def test_a_worker_that_hangs_is_asked_and_then_killed(supervised: Supervised) -> None:
    supervised.membership.members["decode-a"].state = "broken"
    supervised.passes(0)
    supervised.passes(WEDGED_S + 1)
    assert list(supervised.processes.probes) == ["decode-a"]
    supervised.passes(WEDGED_S - 1)
    assert supervised.lines == []
    supervised.passes(2)
    supervised.passes(0)
    assert supervised.lines[0].startswith(
        "decode-a hangs, and was killed; still served: b; restart"
    )


def test_a_worker_that_answers_its_launcher_is_left_alone(supervised: Supervised) -> None:
    """The way between it and the gateway is broken."""
    supervised.membership.members["decode-a"].state = "broken"
    supervised.passes(0)
    supervised.passes(WEDGED_S + 1)
    supervised.comes_back("decode-a")
    supervised.passes(WEDGED_S - 1)
    assert (supervised.lines, supervised.processes.probes) == ([], {})


def test_a_worker_that_is_well_again_in_time(supervised: Supervised) -> None:
    member = supervised.membership.members["decode-a"]
    for state in ("broken", "trial", "broken"):
        member.state = state
        supervised.passes(WEDGED_S - 1)
    assert supervised.processes.probes == {}


def test_a_gateway_that_hangs(supervised: Supervised) -> None:
    for member in supervised.membership.members.values():
        member.heard = False
    supervised.passes(0)
    supervised.passes(WEDGED_S + 1)
    assert list(supervised.processes.probes) == [GATEWAY]
    supervised.passes(WEDGED_S + 1)
    supervised.passes(0)
    assert supervised.lines[0].startswith("gateway hangs, and was killed; restart 1 of 2")


def test_one_that_dies_while_it_starts(supervised: Supervised) -> None:
    supervised.dies("decode-a")
    supervised.passes(SHORTEST_S)
    supervised.dies("decode-a", 1)
    assert "decode-a ended with 1; still served: b; restart 2 of 2 in 1 s" in supervised.lines[-1]
