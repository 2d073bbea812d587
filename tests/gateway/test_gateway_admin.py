"""What admins alone may do: on a port of their own, from their own pages, with what is allowed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ps_sglang.gateway.access import authentication, rights
from ps_sglang.gateway.app import build_app
from ps_sglang.gateway.config import ConfigError
from ps_sglang.gateway.listener import HttpListener
from ps_sglang.gateway.server import runner
from ps_sglang.gateway.state import GATEWAY
from tests.gateway.gateway_setup import Setup, running
from tests.support.standin_engine import Cluster

BODY = {"model": "a", "prompt": "x"}


@asynccontextmanager
async def both_ports(cluster: Cluster) -> AsyncIterator[tuple[str, str, aiohttp.ClientSession]]:
    """The gateway's URL for all, its URL for admins, and a client."""
    server = runner(build_app(replace(cluster.config(), admin_port=0)))
    await server.setup()
    descriptors = server.app[GATEWAY].descriptors
    for_all = HttpListener(server, descriptors)
    for_admins = HttpListener(server, descriptors, for_admins=True)
    try:
        ports = [await one.start("127.0.0.1", 0) for one in (for_all, for_admins)]
        async with aiohttp.ClientSession() as http:
            yield f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}", http
    finally:
        for_all.stop()
        for_admins.stop()
        await server.cleanup()


async def test_with_a_port_for_admins_their_routes_are_there_only() -> None:
    async with Cluster.running() as cluster, both_ports(cluster) as (for_all, for_admins, http):
        calls = (("GET", "/workers"), ("POST", "/flush_cache"), ("GET", "/models/a/metrics"))
        for method, path in calls:
            async with http.request(method, for_all + path) as response:
                error = (await response.json())["error"]
                assert (response.status, error["code"]) == (404, "admin_port")
        assert not cluster.prefill[0].flushed
        for method, path in calls:
            async with http.request(method, for_admins + path) as response:
                assert response.status == 200
        for url in (for_all, for_admins):
            async with http.post(url + "/v1/completions", json=BODY) as response:
                assert response.status == 200


async def test_every_admin_route_leaves_the_port_for_all() -> None:
    async with Cluster.running() as cluster, both_ports(cluster) as (for_all, _, http):
        app = build_app(replace(cluster.config(), admin_port=0))
        for route in app.router.routes():
            path = "" if route.resource is None else route.resource.canonical
            if path.removeprefix("/models/{model}") in rights.OPEN | rights.FOR_USERS:
                continue
            url = for_all + path.format(model="a", name="a-0", id="x")
            async with http.request(route.method, url) as response:
                assert response.status == 404, (route.method, path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"port": 7, "admin_port": 7}, "--admin-port is 7, which is --port"),
        ({"admin_port": 70000}, "--admin-port is 70000"),
        ({"admin_host": "127.0.0.1"}, "--admin-host needs --admin-port"),
        ({"admin_host": "0.0.0.0", "admin_port": 7}, "give --api-keys FILE"),
    ],
)
async def test_ports_for_admins_that_cannot_be(changes: dict[str, Any], said: str) -> None:
    async with Cluster.running() as cluster:
        with pytest.raises(ConfigError, match=said):
            replace(cluster.config(), **changes)


PAGE = "http://page.example"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Host": "localhost:{port}"}, 200),
        ({"Host": "[::1]:{port}"}, 200),
        ({"Origin": PAGE}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1"}, 403),
        ({"Host": "page.example:{port}", "Origin": "http://page.example:{port}"}, 403),
        ({"Host": "page.example"}, 403),
        ({"Host": "1.2.3.4.example"}, 403),
    ],
)
async def test_a_page_that_an_admin_looks_at_is_no_admin(
    gateway: Setup, headers: dict[str, str], status: int
) -> None:
    """Without keys; a browser sends it along, and a page's name may lead to this machine."""
    port = gateway.url.rpartition(":")[2]
    sent = {name: value.replace("{port}", port) for name, value in headers.items()}
    async with gateway.http.post(gateway.url + "/flush_cache", headers=sent) as response:
        assert response.status == status
    assert bool(gateway.prefill.flushed) is (status == 200)
    assert (await gateway.post("/v1/completions", BODY, headers=sent))[0] == 200


async def test_pages_that_were_listed_by_name_may() -> None:
    for origins, status in ((("*",), 403), ((PAGE,), 200)):
        async with running(cors_origins=origins) as gateway:
            headers = {"Origin": PAGE}
            async with gateway.http.get(gateway.url + "/workers", headers=headers) as response:
                assert response.status == status


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions", "/generate"])
@pytest.mark.parametrize("stream", [False, True])
async def test_users_send_no_code(
    gateway: Setup, monkeypatch: pytest.MonkeyPatch, route: str, stream: bool
) -> None:
    prompts = {"/generate": {"text": "x"}, "/v1/completions": {"prompt": "x"}}
    prompt = prompts.get(route, {"messages": [{"role": "user", "content": "x"}]})
    body = {"model": "a", "stream": stream, **prompt, "custom_logit_processor": "{}"}
    async with gateway.http.post(gateway.url + route, json=body) as response:
        assert response.status == 200, "this machine's clients are admins"
    sent = len(gateway.prefill.requests)
    monkeypatch.setattr(authentication, "_is_of_this_machine", lambda _: False)
    status, answer = await gateway.post(route, body)
    assert (status, answer["error"]["code"]) == (403, "admin_required")
    assert "custom_logit_processor" in answer["error"]["message"]
    assert len(gateway.prefill.requests) == sent
    body["custom_logit_processor"] = None
    async with gateway.http.post(gateway.url + route, json=body) as response:
        assert response.status == 200


# From where weights may be loaded.


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """`allowed/model`, `other/model`, and links between the two."""
    for name in ("allowed", "other"):
        (tmp_path / name / "model").mkdir(parents=True)
    (tmp_path / "allowed" / "out").symlink_to(tmp_path / "other" / "model")
    (tmp_path / "other" / "in").symlink_to(tmp_path / "allowed" / "model")
    (tmp_path / "allowed" / "loop").symlink_to(tmp_path / "allowed" / "loop")
    (tmp_path / "allowed-too").mkdir()
    return tmp_path


@asynccontextmanager
async def with_roots(*roots: Path) -> AsyncIterator[Setup]:
    """Decoder `a`, and an adapter `m`; weights may be loaded from below `roots`."""
    listed = tuple(map(str, roots))
    async with running(decoders=("a",), adapters={"m": "/m"}, model_roots=listed) as gateway:
        yield gateway


Call = Callable[[str], tuple[str, str, dict[str, Any]]]
CALLS: dict[str, Call] = {
    "swap": lambda path: ("POST", "/workers/a-0/swap", {"model_path": path}),
    "add": lambda path: ("POST", "/decoders", {"name": "new", "path": path}),
    "replace": lambda path: ("PUT", "/decoders/m", {"path": path}),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "path",
    [
        "{}/other/model",
        "{}/allowed/../other/model",
        "{}/allowed/out",
        "{}/allowed/out/deeper",
        "{}/allowed/out/../model",
        "{}/other/in/../model",
        "{}/allowed-too",
        "{}/allowed/nowhere/../../other/model",
        "/etc",
        "/",
        "allowed/model",
        "../../../../../etc",
        "~/model",
        "org/model",
        "{}/allowed/\0",
        "{}/allowed/\ud800",
    ],
)
async def test_no_weights_from_elsewhere(folders: Path, path: str, call: str) -> None:
    async with with_roots(folders / "allowed") as gateway:
        method, url, body = CALLS[call](path.format(folders))
        async with gateway.http.request(method, gateway.url + url, json=body) as response:
            error = (await response.json())["error"]
        expected = {403} if "\ud800" not in path else {400, 403}
        assert response.status in expected, error
        assert not gateway.decode().weights
        worker = gateway.cluster.lora[0].adapters
        assert worker is not None
        assert not worker.asked
        if response.status == 403:
            assert error["code"] == "path_not_allowed"
            assert error["param"] == ("model_path" if call == "swap" else "path")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("path", ["{}/allowed/model", "{}/other/in", "{}/allowed/only-there"])
async def test_weights_from_allowed_folders(folders: Path, path: str, call: str) -> None:
    """Also what is on the workers' machine only."""
    async with with_roots(folders / "allowed") as gateway:
        method, url, body = CALLS[call](path.format(folders))
        async with gateway.http.request(method, gateway.url + url, json=body) as response:
            assert response.status in (200, 201), await response.text()


async def test_no_root_allows_nothing_and_says_how(folders: Path) -> None:
    async with with_roots() as gateway:
        _, url, body = CALLS["swap"](str(folders / "allowed" / "model"))
        status, answer = await gateway.post(url, body)
        assert status == 403
        assert "from no folder: start with --model-root FOLDER" in answer["error"]["message"]
