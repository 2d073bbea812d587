"""A launcher's workers in a cluster, its own or another's: they join, stay, and leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.errors import LaunchError, UsageError
from ps_sglang.launch.args import parse_args
from ps_sglang.launch.member import RETRY_S, Member
from ps_sglang.launch.membership import Membership
from ps_sglang.launch.spec import ClusterSpec, EventPorts, Role, WorkerSpec
from tests.support.standin_gateway import LEASE_S, StandInGateway


def worker(name: str, port: int) -> WorkerSpec:
    return WorkerSpec(
        name=name,
        role=Role.DECODE,
        model_name="a",
        model_path=Path("a"),
        port=port,
        bootstrap_port=None,
        events=EventPorts("tcp://127.0.0.1:1", "tcp://127.0.0.1:2"),
        argv=(),
        log=Path("log"),
    )


def membership(gateway: StandInGateway, *names: str, named: bool = False) -> Membership:
    workers = [worker(name, port) for port, name in enumerate(names, 1)]
    return Membership(gateway.url + "/", workers, allow_unverified=False, named=named)


class Spoken:
    """A member at a gateway, and what it has reported."""

    def __init__(self, gateway: StandInGateway) -> None:
        self.lines: list[str] = []
        self.member = Member(gateway.url, "decode-a", {"url": "http://h:1"}, self.lines.append)
        self.gateway = gateway

    def steps(self, count: int) -> list[float | None]:
        return [self.member.step() for _ in range(count)]


@pytest.fixture
def spoken(gateway: StandInGateway) -> Spoken:
    gateway.names = ["x", "y"]
    spoken = Spoken(gateway)
    spoken.member.join()
    return spoken


def test_all_join_and_all_drain_before_the_first_leaves(gateway: StandInGateway) -> None:
    joined = membership(gateway, "decode-a", "decode-b")
    joined.require_gateway()
    gateway.names = ["x", "y"]
    assert joined.join() == ()
    assert joined.join() == ()
    joined.leave()
    joined.leave()
    joining = [
        {"url": f"http://127.0.0.1:{port}", "allow_unverified": False, "lease": True}
        for port in (1, 2)
    ]
    assert gateway.calls[1:] == [
        ("POST", "/workers", joining[0]),
        ("POST", "/workers", joining[1]),
        ("POST", "/workers/x/drain", None),
        ("POST", "/workers/y/drain", None),
        ("DELETE", "/workers/x?now=0&lease=lease-x", None),
        ("DELETE", "/workers/y?now=0&lease=lease-y", None),
    ]


def test_workers_of_the_launchers_own_gateway_keep_their_names(gateway: StandInGateway) -> None:
    assert membership(gateway, "decode-a", named=True).join() == ()
    assert gateway.calls[0][2]["name"] == "decode-a"


def test_a_refused_worker_is_named(gateway: StandInGateway) -> None:
    gateway.refuse["/workers"] = "page_size: cluster 1, worker 16"
    joined = membership(gateway, "decode-a")
    with pytest.raises(LaunchError, match="decode-a: page_size: cluster 1, worker 16"):
        joined.join()
    joined.leave()
    assert len(gateway.calls) == 1


def test_who_cannot_join_yet_is_waited_for(gateway: StandInGateway) -> None:
    joined = membership(gateway, "decode-a", "decode-b")
    gateway.refuse["/workers"] = "try again"
    gateway.codes["/workers"] = "no_worker"
    assert joined.join() == ["decode-a", "decode-b"]
    del gateway.refuse["/workers"]
    assert joined.join() == ()


def test_leaving_never_fails(gateway: StandInGateway) -> None:
    """A worker may have left already, and a gateway may be gone."""
    joined = membership(gateway, "decode-a", "decode-b")
    gateway.names = ["x", "y"]
    joined.join()
    gateway.refuse["/workers/x/drain"] = gateway.refuse["/workers/x?now=0&lease=lease-x"] = "no"
    joined.leave()
    assert gateway.calls[-1] == ("DELETE", "/workers/y?now=0&lease=lease-y", None)


def test_a_lease_is_renewed_several_times_in_its_time(spoken: Spoken) -> None:
    seconds = spoken.steps(2)
    assert seconds[0] is not None
    assert seconds == [seconds[0]] * 2
    assert seconds[0] <= LEASE_S / 4
    assert spoken.gateway.calls[-2:] == [("POST", "/workers/x/renew", {"lease": "lease-x"})] * 2
    assert (spoken.member.state, spoken.lines) == ("good", [])


def test_who_is_unknown_joins_again(spoken: Spoken) -> None:
    """The gateway has restarted."""
    spoken.gateway.refuse["/workers/x/renew"] = "no such lease"
    spoken.gateway.codes["/workers/x/renew"] = "lease_unknown"
    assert spoken.steps(1) == [0.0]
    spoken.steps(2)
    assert [path for _, path, _ in spoken.gateway.calls[-3:]] == [
        "/workers/x/renew", "/workers", "/workers/y/renew",
    ]  # fmt: skip
    assert spoken.lines == ["decode-a has joined again, as y"]


def test_what_lasts_is_reported_once(spoken: Spoken) -> None:
    """Its engine may just be restarting, too: it goes on until it is in again."""
    gateway = spoken.gateway
    gateway.refuse |= {"/workers/x/renew": "unknown", "/workers": "there is no SGLang worker"}
    assert spoken.steps(4) == [0.0, RETRY_S, RETRY_S, RETRY_S]
    del gateway.refuse["/workers"]
    spoken.steps(1)
    assert spoken.lines == [
        "decode-a cannot join: there is no SGLang worker", "decode-a has joined again, as y",
    ]  # fmt: skip


def test_who_was_removed_stays_away(spoken: Spoken) -> None:
    spoken.gateway.refuse["/workers/x/renew"] = "it was removed"
    spoken.gateway.codes["/workers/x/renew"] = "worker_removed"
    assert spoken.steps(2) == [None, None]
    assert spoken.lines == ["decode-a was removed from the cluster, and stays away"]
    assert not spoken.member.asks
    calls = len(spoken.gateway.calls)
    spoken.member.leave()
    assert len(spoken.gateway.calls) == calls


def test_a_gateway_that_is_gone_is_asked_on() -> None:
    lines: list[str] = []
    joining: dict[str, Any] = {"url": "http://h:1"}
    member = Member("http://127.0.0.1:1", "decode-a", joining, lines.append)
    assert [member.step(), member.step()] == [RETRY_S, RETRY_S]
    assert (lines, member.heard, member.asks) == ([], False, True)


def test_whether_the_gateway_is_heard(gateway: StandInGateway) -> None:
    joined = membership(gateway, "decode-a", "decode-b")
    assert joined.hears_gateway
    first, second = joined.members.values()
    first.heard = False
    assert joined.hears_gateway
    second.heard = False
    assert not joined.hears_gateway
    for member in (first, second):  # nobody asks it any more
        member.leave()
    assert joined.hears_gateway


def test_no_gateway_is_refused_before_any_start() -> None:
    with pytest.raises(UsageError, match=r"no ps_sglang gateway answers at http://127\.0\.0\.1:1"):
        Membership("http://127.0.0.1:1", (), allow_unverified=False, named=False).require_gateway()


def test_joining_workers_bring_no_prefill_worker_unless_asked() -> None:
    join = ["--prefill", "base", "--join", "http://h:1"]
    assert parse_args([*join, "--decoders", "c"]) == ClusterSpec(
        "base", ("c",), join="http://h:1", prefill_replicas=0
    )
    assert parse_args([*join, "--prefill-replicas", "2"]) == ClusterSpec(
        "base", (), join="http://h:1", prefill_replicas=2
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--decoders", "c", "--port", "1"], "--port is the gateway's"),
        (["--decoders", "c", "--host", "::1"], "--host is the gateway's"),
        ([], "--decoders is missing"),
        (["--decoders", ""], "no decoder given"),
        (["--decoders", "c", "--prefill-replicas", "-1"], "must be at least 0"),
        (["--decoders", "c", "--max-restarts", "-1"], "--max-restarts is -1"),
        (["--decoders", "c", "--advertise", ""], "--advertise is empty"),
    ],
)
def test_what_joining_workers_cannot_ask_for(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_args(["--prefill", "base", "--join", "http://h:1", *words])


def test_who_joins_finds_the_clusters_key(gateway: StandInGateway, tmp_path: Path) -> None:
    """By the gateway's own word, on its machine; elsewhere it is given."""
    key, other = ClusterKey.make(), ClusterKey.make()
    own, copy, wrong = (tmp_path / name for name in ("own", "copy", "wrong"))
    for one, path in ((key, own), (key, copy), (other, wrong)):
        one.save(path)
    joining = Membership(gateway.url, (), allow_unverified=False, named=False)
    with pytest.raises(UsageError, match="has no key, so that no worker can join it"):
        joining.key_file(None)
    gateway.cluster_key = {"id": key.id, "file": str(own)}
    assert joining.key_file(None) == own
    assert joining.key_file(copy) == copy
    with pytest.raises(UsageError, match=f"{wrong} is not the key of the cluster at"):
        joining.key_file(wrong)
    own.unlink()
    with pytest.raises(
        UsageError, match=r"is not on this machine \(cluster key file .*own: No such"
    ):
        joining.key_file(None)
    with pytest.raises(UsageError, match=r"cluster key file .*own: No such"):
        joining.key_file(own)


def test_threads_of_workers_that_have_left_are_forgotten(gateway: StandInGateway) -> None:
    """Each restart of a worker begins one."""
    gateway.refuse["/workers"], gateway.codes["/workers"] = "it was removed", "worker_removed"
    joined = membership(gateway, named=True)
    for _ in range(3):
        joined.add(worker("decode-a", 1))
        joined._threads[-1].join()
    assert len(joined._threads) == 1
