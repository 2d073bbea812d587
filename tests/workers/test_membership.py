"""A launcher's workers in the cluster of another."""

from __future__ import annotations

from pathlib import Path

import pytest

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.errors import LaunchError, UsageError
from ps_sglang.launch.args import parse_args
from ps_sglang.launch.membership import Membership
from ps_sglang.launch.spec import ClusterSpec, EventPorts, Role, WorkerSpec
from tests.support.standin_gateway import StandInGateway


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


def test_all_join_and_all_drain_before_the_first_leaves(gateway: StandInGateway) -> None:
    membership = Membership(gateway.url + "/", allow_unverified=False)
    membership.require_gateway()
    gateway.names = ["x", "y"]
    membership.join([worker("decode-a", 1), worker("decode-b", 2)])
    membership.leave()
    membership.leave()
    joining = [{"url": f"http://127.0.0.1:{port}", "allow_unverified": False} for port in (1, 2)]
    assert gateway.calls[1:] == [
        ("POST", "/workers", joining[0]),
        ("POST", "/workers", joining[1]),
        ("POST", "/workers/x/drain", None),
        ("POST", "/workers/y/drain", None),
        ("DELETE", "/workers/x?now=0", None),
        ("DELETE", "/workers/y?now=0", None),
    ]


def test_a_refused_worker_is_named(gateway: StandInGateway) -> None:
    gateway.refuse["/workers"] = "page_size: cluster 1, worker 16"
    membership = Membership(gateway.url, allow_unverified=True)
    with pytest.raises(LaunchError, match="decode-a: page_size: cluster 1, worker 16"):
        membership.join([worker("decode-a", 1)])
    membership.leave()
    assert len(gateway.calls) == 1


def test_leaving_never_fails(gateway: StandInGateway) -> None:
    """The last prefill worker may not leave, and a gateway may be gone."""
    membership = Membership(gateway.url, allow_unverified=False)
    gateway.names = ["x", "y"]
    membership.join([worker("decode-a", 1), worker("decode-b", 2)])
    gateway.refuse["/workers/x/drain"] = gateway.refuse["/workers/x?now=0"] = "no"
    membership.leave()
    assert gateway.calls[-1] == ("DELETE", "/workers/y?now=0", None)


def test_no_gateway_is_refused_before_any_start() -> None:
    with pytest.raises(UsageError, match=r"no ps_sglang gateway answers at http://127\.0\.0\.1:1"):
        Membership("http://127.0.0.1:1", allow_unverified=False).require_gateway()


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
    membership = Membership(gateway.url, allow_unverified=False)
    with pytest.raises(UsageError, match="has no key, so that no worker can join it"):
        membership.key_file(None)
    gateway.cluster_key = {"id": key.id, "file": str(own)}
    assert membership.key_file(None) == own
    assert membership.key_file(copy) == copy
    with pytest.raises(UsageError, match=f"{wrong} is not the key of the cluster at"):
        membership.key_file(wrong)
    own.unlink()
    with pytest.raises(
        UsageError, match=r"is not on this machine \(cluster key file .*own: No such"
    ):
        membership.key_file(None)
    with pytest.raises(UsageError, match=r"cluster key file .*own: No such"):
        membership.key_file(own)
