"""What the launcher on Ray does when commands end and loads change; Ray itself stands in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ps_sglang.contract import DecoderReport
from ps_sglang.errors import LaunchError, ServingEndedError, UsageError
from ps_sglang.gateway_http import KEY_VARIABLE
from ps_sglang.launch.ray.cluster import RayCluster
from ps_sglang.launch.ray.command import ActorCommand, ChildEnd
from ps_sglang.launch.ray.keys import RayKeys, ScaledKeys, ScalingKeys
from ps_sglang.launch.ray.placement import Bundle
from ps_sglang.launch.ray.prepare import RayPlan
from ps_sglang.launch.spec import ClusterSpec
from ps_sglang.models.resolve import NamedModel
from ps_sglang.workers.client import WorkersClient
from tests.gateway.hand_clock import Clock

SCALING = ScalingKeys(target_requests=1, up_after=10, down_after=10)


@dataclass
class Call:
    """`handle.method.remote(...)`."""

    act: Callable[..., Any]

    def remote(self, *arguments: Any) -> Any:
        return self.act(*arguments)


@dataclass
class StandInActor:
    name: str
    index: int | None
    commands: list[ActorCommand] = field(default_factory=list)
    runs: list[object] = field(default_factory=list)
    stopped: bool = False

    @property
    def run(self) -> Call:
        def act(command: ActorCommand) -> object:
            self.commands.append(command)
            self.runs.append(object())
            return self.runs[-1]

        return Call(act)

    @property
    def stop(self) -> Call:
        return Call(lambda: setattr(self, "stopped", True))

    @property
    def free_ports(self) -> Call:
        return Call(lambda count: list(range(4001, 4001 + count)))

    @property
    def host(self) -> Call:
        return Call(lambda: "10.0.0.1")


class StandInSession:
    """Ray, as far as `RaySession` lets a cluster see it. `ends` are the runs that have ended."""

    has_gpus = False
    nodes: tuple[Bundle, ...] = ({"CPU": 1.0},)
    free: Bundle = {"CPU": 1.0}  # noqa: RUF012

    def __init__(self) -> None:
        self.hosts = {"127.0.0.1"}
        self.holds = True
        self.reserved: list[Bundle] = []
        self.actors: dict[str, StandInActor] = {}
        self.ends: dict[object, ChildEnd] = {}
        self.killed: list[str] = []

    def reserve(self, bundles: list[Bundle]) -> None:
        self.reserved = bundles

    def is_reserved(self, seconds: float) -> bool:
        return self.holds

    def actor(self, name: str, bundle: Bundle, index: int | None) -> StandInActor:
        self.actors[name] = StandInActor(name, index)
        return self.actors[name]

    def get(self, promise: Any) -> Any:
        return promise

    def wait(self, promises: Sequence[Any], seconds: float) -> list[Any]:
        return [one for one in promises if one in self.ends]

    def wait_all(self, promises: Sequence[Any], seconds: float) -> None:
        pass

    def end_of(self, run: Any) -> ChildEnd:
        return self.ends.pop(run)

    def kill(self, actor: StandInActor) -> None:
        self.killed.append(actor.name)


class OnRay:
    """A cluster of a prefill worker and one to three workers of decoder a."""

    def __init__(self, patch: pytest.MonkeyPatch, **options: Any) -> None:
        self.clock = Clock()
        self.lines: list[str] = []
        self.session = StandInSession()
        self.requests = 0
        spec = ClusterSpec(
            prefill="base=/m/base",
            decoders=("a=/m/a",),
            on="ray",
            ray=RayKeys(decoders={"a": ScaledKeys(max_replicas=3)}, scaling=SCALING),
            **{"port": 0, "max_restarts": 1, **options},
        )
        base = NamedModel("base", Path("/m/base"))
        plan = RayPlan(spec, base, (DecoderReport("a", Path("/m/a"), None),), "s" * 32)
        self.cluster = RayCluster(plan, self.session, self._say, self.clock)  # type: ignore[arg-type]
        patch.setattr(WorkersClient, "list", lambda client: self._list())

    def start(self) -> None:
        self.cluster.start()

    def ends(self, name: str, status: int = 3) -> None:
        self.session.ends[self.session.actors[name].runs[-1]] = ChildEnd(status, "  | why")
        self.cluster.step()

    def passes(self, seconds: float) -> None:
        self.clock.now += seconds
        self.cluster.step()

    def _say(self, line: str) -> None:
        self.lines.append(line)
        self.clock.now += 1  # a start that waits has an end

    def _list(self) -> list[dict[str, Any]]:
        load = {"requests": self.requests}
        prefill = {"role": "prefill", "decoders": [], "state": "good", "load": load}
        return [prefill, prefill | {"role": "decode", "decoders": ["a"]}]


@pytest.fixture
def on_ray(monkeypatch: pytest.MonkeyPatch) -> OnRay:
    return OnRay(monkeypatch)


def test_one_reservation_holds_all_that_begins(on_ray: OnRay) -> None:
    on_ray.start()
    assert on_ray.session.reserved == [{"node:__internal_head__": 0.001}, {"CPU": 1}, {"CPU": 1}]
    actors = on_ray.session.actors
    assert [(one.name, one.index) for one in actors.values()] == [
        ("gateway", 0),
        ("prefill-0", 1),
        ("decode-a", 2),
    ]
    assert "ready http://127.0.0.1:4001" in on_ray.cluster.ready_line
    assert "http://127.0.0.1:4001" in actors["decode-a"].commands[0].argv


def test_what_cannot_be_placed_ends_the_start(on_ray: OnRay) -> None:
    on_ray.session.holds = False
    with pytest.raises(LaunchError, match=r"could not place gateway, prefill-0, decode-a .*CPU 2"):
        on_ray.start()
    assert on_ray.session.actors == {}


def test_a_worker_that_ends_while_the_cluster_starts_ends_it(on_ray: OnRay) -> None:
    on_ray.start()
    on_ray.cluster._processes.is_up = False
    with pytest.raises(LaunchError, match="decode-a ended with 2 while the cluster was starting"):
        on_ray.ends("decode-a", 2)


def test_what_ends_runs_again_on_its_actor_after_a_back_off(on_ray: OnRay) -> None:
    on_ray.start()
    for name in ("prefill-0", "gateway"):
        on_ray.ends(name)
        on_ray.passes(0.4)
        assert len(on_ray.session.actors[name].runs) == 1
        on_ray.passes(0.1)
        first, again = on_ray.session.actors[name].commands
        assert again == first
    assert on_ray.session.killed == []


def test_it_serves_until_the_gateway_or_the_last_worker_is_given_up(on_ray: OnRay) -> None:
    on_ray.start()
    for name in ("prefill-0", "decode-a"):
        on_ray.ends(name)
        on_ray.passes(0.5)
    on_ray.ends("decode-a")
    assert "decode-a ended with 3, and 1 restarts in ten minutes are the limit" in on_ray.lines[-1]
    assert on_ray.session.killed == ["decode-a"]
    with pytest.raises(ServingEndedError, match="prefill-0 ended with 3"):
        on_ray.ends("prefill-0")


def test_a_decoder_grows_outside_of_the_reservation_and_shrinks_to_it(on_ray: OnRay) -> None:
    on_ray.start()
    on_ray.requests = 9
    on_ray.passes(0)
    on_ray.passes(10)
    actors = on_ray.session.actors
    assert {name: actors[name].index for name in ("decode-a-2", "decode-a-3")} == {
        "decode-a-2": None,
        "decode-a-3": None,
    }
    on_ray.requests = 0
    for leaving in ("decode-a-3", "decode-a-2"):
        on_ray.passes(0)
        on_ray.passes(10)
        assert actors[leaving].stopped
        on_ray.ends(leaving, 0)
        assert on_ray.session.killed[-1] == leaving
    on_ray.passes(0)
    on_ray.passes(100)
    assert not actors["decode-a"].stopped


def test_a_worker_that_ray_never_placed_leaves_too(on_ray: OnRay) -> None:
    """Its actor hears no `stop`."""
    on_ray.start()
    on_ray.requests = 2
    on_ray.passes(0)
    on_ray.passes(10)
    on_ray.requests = 0
    on_ray.passes(0)
    on_ray.passes(10)
    assert on_ray.session.killed == []
    on_ray.passes(61)
    assert on_ray.session.killed == ["decode-a-2"]


def test_workers_on_several_hosts_need_a_way_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    for options, message in (
        ({}, "only one of them reaches a gateway at 127.0.0.1: give --host"),
        ({"host": "0.0.0.0", "no_keys": True}, "join from them with an admin's key"),
        ({"host": "0.0.0.0", "api_keys": Path("k")}, "that key in .PS_SGLANG_API_KEY"),
    ):
        on_ray = OnRay(monkeypatch, **options)
        on_ray.session.hosts = {"10.0.0.1", "10.0.0.2"}
        with pytest.raises(UsageError, match=message):
            on_ray.start()
        assert on_ray.session.reserved == []


def test_workers_of_other_hosts_find_the_gateway_and_show_their_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "admins")
    on_ray = OnRay(monkeypatch, host="0.0.0.0", api_keys=Path("k"), port=8000)
    on_ray.session.hosts = {"10.0.0.1", "10.0.0.2"}
    on_ray.start()
    command = on_ray.session.actors["decode-a"].commands[0]
    assert "http://10.0.0.1:8000" in command.argv
    assert command.environ == {KEY_VARIABLE: "admins"}
    assert command.secret == "s" * 32
    assert "admins" not in command.argv
