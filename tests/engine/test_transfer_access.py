"""SGLang's bootstrap server behind the cluster's key, asked by SGLang's own code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from ps_sglang.cluster_key import REQUEST_PROOF_HEADER, VARIABLE, ClusterKey
from ps_sglang.engine.compat.srt import (
    CommonKVBootstrapServer,
    CommonKVManager,
    CommonKVReceiver,
    bootstrap_clients,
)
from ps_sglang.engine.transfer import access
from tests.engine.plain_server import free_port
from tests.support.strangers import FRAMES, knock

KEY = ClusterKey.make()
RANK = {
    "attn_tp_size": 1, "attn_tp_rank": 0, "attn_cp_size": 1, "attn_cp_rank": 0, "attn_dp_size": 1,
    "attn_dp_rank": 0, "pp_size": 1, "pp_rank": 0, "system_dp_size": 1, "system_dp_rank": 0,
    "rank_ip": "10.0.0.1", "rank_port": 4711, "page_size": 16, "kv_cache_dtype": "float32",
}  # fmt: skip
ROUTES = (
    ("GET", "/route?prefill_dp_rank=-1&prefill_cp_rank=-1&target_tp_rank=-1&target_pp_rank=-1"),
    ("PUT", "/route"),
    ("POST", "/route"),
    ("POST", "/register_dp_rank"),
    ("POST", "/query_dp_ranks"),
    ("GET", "/health"),
    ("GET", "/nowhere"),
)


class Server(CommonKVBootstrapServer):  # type: ignore[misc]
    """As the hook makes it."""

    def _setup_routes(self) -> None:
        super()._setup_routes()
        access.setup_routes(None, self)


@pytest.fixture
def keyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process has the cluster's key, and asks as a worker does."""
    path = tmp_path / "cluster.key"
    KEY.save(path)
    monkeypatch.setenv(VARIABLE, str(path))
    monkeypatch.setattr(bootstrap_clients, "requests", access.KeyedRequests)
    bootstrap_clients._bootstrap_sessions.by_addr = {}
    return path


@pytest.fixture
def address(keyed: Path) -> Iterator[str]:
    port = free_port()
    server = Server("127.0.0.1", port)
    try:
        while not _listens(port):
            assert server.thread.is_alive()
        yield f"127.0.0.1:{port}"
    finally:
        server.close()


def _listens(port: int) -> bool:
    with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            connection.connect()
        except OSError:
            return False
        return True


def register(address: str) -> None:
    CommonKVManager._register_topology_row(SimpleNamespace(), f"http://{address}/route", RANK)


def look_up(address: str) -> Any:
    asker = SimpleNamespace(bootstrap_addr=address)
    return CommonKVReceiver._get_bootstrap_info_from_server(asker, 0, 0, 0, 0)


def test_workers_find_each_other(address: str) -> None:
    register(address)
    assert look_up(address) == {"rank_ip": "10.0.0.1", "rank_port": 4711, "pp_rank": 0}
    url = f"http://{address}/register_dp_rank"
    sent = {"bootstrap_room": 5, "dp_rank": 0}
    assert bootstrap_clients.requests.post(url, json=sent).status_code == 200
    assert CommonKVReceiver.query_prefill_dp_ranks(address, [5]) == {"5": 0}
    health = access.KeyedSession().get(f"http://{address}/health", timeout=(2, 3))
    assert health.status_code == 200


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_the_key_there_is_nothing(address: str, method: str, path: str) -> None:
    other = ClusterKey.make().request_proof(method, path, b"{}")
    elsewhere = KEY.request_proof(method, f"{path}x", b"{}")
    for proof in (None, "", "x", other, elsewhere):
        headers = {} if proof is None else {REQUEST_PROOF_HEADER: proof}
        answer = requests.request(method, f"http://{address}{path}", data=b"{}", headers=headers)
        assert answer.status_code == 401
        assert VARIABLE in answer.text


def test_who_overhears_a_request_cannot_change_it(address: str) -> None:
    register(address)
    spoofed = {**RANK, "rank_ip": "10.6.6.6"}
    prepared = requests.Request("PUT", f"http://{address}/route", json=RANK).prepare()
    assert isinstance(prepared.body, bytes)
    headers = {REQUEST_PROOF_HEADER: KEY.request_proof("PUT", "/route", prepared.body)}
    assert requests.put(f"http://{address}/route", json=RANK, headers=headers).ok
    assert requests.put(f"http://{address}/route", json=spoofed, headers=headers).status_code == 401
    assert look_up(address)["rank_ip"] == "10.0.0.1"


def test_a_worker_of_another_cluster_is_told_why(
    address: str, keyed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    register(address)
    keyed.unlink()
    ClusterKey.make().save(keyed)
    bootstrap_clients._bootstrap_sessions.by_addr = {}
    assert look_up(address) is None
    assert "401" in caplog.text
    assert VARIABLE in caplog.text


def test_nonsense_harms_nobody(address: str) -> None:
    register(address)
    knock(int(address.rpartition(":")[2]), FRAMES)
    assert look_up(address)["rank_port"] == 4711


def test_a_worker_without_a_key_asks_and_serves_as_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    server: Any = SimpleNamespace(app=SimpleNamespace(middlewares=[]))
    access.setup_routes(None, server)
    assert server.app.middlewares == []
    assert access.KeyedSession().auth is None


def test_sglang_uses_no_more_of_requests_than_is_there() -> None:
    source = inspect.getsource(bootstrap_clients)
    used = set(re.findall(r"\brequests\.(\w+)", source))
    assert used >= {"get", "put", "post", "Session", "adapters"}
    assert {name for name in used if not hasattr(access.KeyedRequests, name)} == set()
