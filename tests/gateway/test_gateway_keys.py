"""Keys over HTTP: who is let in, to what, and what a wrong key is told."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ps_sglang.gateway.access import file_watch, key_file, rights
from ps_sglang.gateway.access.authentication import _is_of_this_machine
from ps_sglang.gateway.app import build_app
from ps_sglang.gateway.config import ConfigError
from tests.gateway.gateway_setup import Setup
from tests.gateway.keys_setup import TENANTS, add_key, as_, ask, running_with_keys, secret

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SENT = {"model": "a", "prompt": "x"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.txt"


@pytest.fixture
async def keyed(path: Path) -> AsyncIterator[Setup]:
    async with running_with_keys(path) as setup:
        yield setup


async def status(gateway: Setup, headers: Any) -> int:
    async with gateway.http.post(gateway.url + COMPLETIONS, json=SENT, headers=headers) as response:
        return response.status


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {secret('alice')}"},
        {"authorization": f"bearer  {secret('alice')} "},
        {"x-api-key": secret("alice")},
        {"api-key": secret("alice")},
        {"Authorization": f"Bearer {secret('alice')}", "x-api-key": secret("alice")},
        {"Authorization": "Basic b2xkOnByb3h5", "x-api-key": secret("alice")},
    ],
)
async def test_every_clients_way_to_send_a_key(keyed: Setup, headers: dict[str, str]) -> None:
    assert await status(keyed, headers) == 200
    for worker in (keyed.prefill, keyed.decode()):
        sent = json.dumps(worker.headers) + json.dumps(worker.requests)
        assert "s3cret" not in sent, "a client's key is none of the workers' business"


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "There is no API key"),
        ({"Authorization": "Bearer"}, "There is no API key"),
        ({"Authorization": secret("alice")}, "There is no API key"),
        ({"Authorization": "Bearer psk-wrong-s3cret"}, "none of this server's"),
        ({"Authorization": f"Bearer {secret('alice')}x"}, "none of this server's"),
        ({"Authorization": f"Bearer {secret('alice')[:-1]}"}, "none of this server's"),
        ({"Authorization": f"Bearer {secret('ALICE')}"}, "none of this server's"),
        ({"x-api-key": key_file.digest_of(secret("alice"))}, "none of this server's"),
        ({"x-api-key": "é\udcff"}, "none of this server's"),
        (
            {"Authorization": f"Bearer {secret('alice')}", "api-key": secret("eve")},
            "two API keys, and they differ",
        ),
    ],
)
async def test_a_wrong_key_is_refused_and_neither_told_nor_logged(
    keyed: Setup, caplog: pytest.LogCaptureFixture, headers: dict[str, str], reason: str
) -> None:
    caplog.set_level(logging.DEBUG)
    for route in (COMPLETIONS, "/v1/models", "/workers", "/metrics", "/nowhere"):
        method = "POST" if route == COMPLETIONS else "GET"
        async with keyed.http.request(
            method, keyed.url + route, json=SENT, headers=headers
        ) as response:
            text = await response.text()
            assert response.status == 401
            assert response.headers["WWW-Authenticate"] == "Bearer"
        error = json.loads(text)["error"]
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert reason in error["message"]
        assert "s3cret" not in text
    assert "s3cret" not in caplog.text
    assert not keyed.prefill.requests


async def test_anthropics_routes_refuse_in_its_format(keyed: Setup) -> None:
    sent = {"model": "a", "max_tokens": 3, "messages": [{"role": "user", "content": "x"}]}
    for prefix in ("", "/models/a"):
        status, answer = await keyed.post(prefix + "/v1/messages", sent)
        assert status == 401
        assert answer["type"] == "error"
        assert answer["error"]["type"] == "authentication_error"
        headers = {"x-api-key": secret("alice")}
        assert (await keyed.post(prefix + "/v1/messages", sent, headers=headers))[0] == 200


async def test_nobody_without_a_key_sends_a_whole_body(keyed: Setup) -> None:
    """The answer comes while the body is still outstanding."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(keyed.url.rpartition(":")[2]))
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nConnection: close\r\n" in head
    writer.close()


@pytest.mark.parametrize("probe", ["/health", "/liveness", "/ready", "/readiness"])
@pytest.mark.parametrize("prefix", ["", "/models/a"])
async def test_probes_need_no_key_and_tell_nothing_else(
    keyed: Setup, probe: str, prefix: str
) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, as_("alice")):
        async with keyed.http.get(keyed.url + prefix + probe, headers=headers) as response:
            assert (response.status, await response.json()) == (200, {"status": "ok"})
    _, told = await ask(keyed, "ops", "GET", prefix + probe)
    assert probe == "/liveness" or len(told) > 1


async def test_the_documents_need_no_key(keyed: Setup) -> None:
    for path in ("/docs", "/openapi.json"):
        async with keyed.http.get(keyed.url + path) as response:
            assert response.status == 200


ADMINS = {
    ("POST", "/debug/route"), ("GET", "/decoders"), ("POST", "/decoders"),
    ("DELETE", "/decoders/{name}"), ("PUT", "/decoders/{name}"), ("GET", "/flush_cache"),
    ("POST", "/flush_cache"), ("GET", "/get_server_info"), ("GET", "/metrics"),
    ("GET", "/server_info"), ("GET", "/v1/live"), ("GET", "/v1/loads"), ("GET", "/workers"),
    ("POST", "/workers"),
    ("DELETE", "/workers/{name}"), ("GET", "/workers/{name}"), ("POST", "/workers/{name}/drain"),
    ("POST", "/workers/{name}/resume"),
    ("POST", "/workers/{name}/renew"), ("POST", "/workers/{name}/swap"),
}  # fmt: skip


def routes(gateway: Setup) -> set[tuple[str, str]]:
    return {
        (route.method, route.resource.canonical.removeprefix("/models/{model}"))
        for route in gateway.app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }


async def test_every_route_is_an_admins_unless_it_was_opened(keyed: Setup) -> None:
    """A new route belongs here, or in `access.rights` if a user may have it."""
    every = routes(keyed)
    paths = {path for _, path in every}
    assert paths >= rights.OPEN | rights.FOR_USERS, "no route that is not there"
    assert {one for one in every if one[1] not in rights.OPEN | rights.FOR_USERS} == ADMINS


async def test_users_are_refused_what_is_an_admins(keyed: Setup) -> None:
    for method, path in sorted(ADMINS):
        for prefix in ("", "/models/a"):
            route = prefix + path.format(name="a-0")
            if prefix and (method, "/models/{model}" + path) not in {
                (one.method, one.resource and one.resource.canonical)
                for one in keyed.app.router.routes()
            }:
                continue
            status, answer = await ask(keyed, "alice", method, route, {})
            assert (status, answer["error"]["code"]) == (403, "admin_required"), route
            assert answer["error"]["type"] == "permission_error"
            assert "The key 'alice' is a user's" in answer["error"]["message"]
            assert "a-0" not in json.dumps(answer)
    assert not any(worker.flushed for worker in keyed.cluster.workers)
    assert (await ask(keyed, "ops", "POST", "/flush_cache"))[0] == 200
    for path in ("/workers", "/decoders", "/metrics", "/v1/loads", "/server_info?model=a"):
        assert (await ask(keyed, "ops", "GET", path))[0] == 200


async def test_users_have_the_rest(keyed: Setup) -> None:
    chat = {"model": "a", "messages": [{"role": "user", "content": "x"}]}
    for path, body in (
        (CHAT, chat),
        ("/generate", {"model": "a", "text": "x"}),
        ("/v1/responses", {"model": "a", "input": "x"}),
        ("/tokenize", {"prompt": "x"}),
        ("/v1/messages/count_tokens", {**chat, "max_tokens": 1}),
    ):
        assert (await ask(keyed, "alice", "POST", path, body))[0] == 200, path
    for path in ("/v1/models", "/v1/models/a", "/get_model_info?model=a", "/health_generate"):
        assert (await ask(keyed, "alice", "GET", path))[0] == 200, path
    assert (await ask(keyed, "alice", "GET", "/nowhere"))[0] == 404
    assert (await ask(keyed, "alice", "GET", CHAT))[0] == 405


async def test_a_key_is_added_and_revoked_while_it_runs(
    keyed: Setup, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_watch, "LOOK_SECONDS", 0.0)
    key_file.revoke(path, "alice")
    assert await status(keyed, as_("alice")) == 401
    add_key(path, "alice")
    assert await status(keyed, as_("alice")) == 200


async def test_a_browser_may_ask_whether_it_may(path: Path) -> None:
    page = "http://page.example"
    async with running_with_keys(path, cors_origins=(page,)) as gateway:
        asked = {"Origin": page, "Access-Control-Request-Method": "POST"}
        async with gateway.http.options(gateway.url + CHAT, headers=asked) as response:
            assert response.status == 204
        headers = {"Origin": page}
        async with gateway.http.post(gateway.url + CHAT, json={}, headers=headers) as response:
            assert response.status == 401
            assert response.headers["Access-Control-Allow-Origin"] == page, "a page may read why"


async def test_without_keys_what_is_sent_as_one_does_not_count(gateway: Setup) -> None:
    for headers in ({}, {"Authorization": "Bearer none"}, {"x-api-key": "a", "api-key": "b"}):
        assert await status(gateway, headers) == 200
    assert (await ask(gateway, "eve", "GET", "/workers"))[0] == 200, "whoever is on this machine"


class _Transport:
    def __init__(self, own: str) -> None:
        self.own = own

    def get_extra_info(self, name: str) -> tuple[str, int]:
        return (self.own, 1)


class _Request:
    def __init__(self, remote: str | None, own: str) -> None:
        self.remote, self.transport = remote, _Transport(own)


@pytest.mark.parametrize(
    ("remote", "own", "expected"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("::1", "::1", True),
        ("10.0.0.5", "10.0.0.5", True),
        ("10.0.0.6", "10.0.0.5", False),
        ("fe80::1%eth0", "fe80::2", False),
        ("::ffff:10.0.0.6", "::ffff:10.0.0.5", False),
        (None, "127.0.0.1", False),
    ],
)
def test_who_is_of_this_machine(remote: str | None, own: str, expected: bool) -> None:
    assert _is_of_this_machine(_Request(remote, own)) is expected  # type: ignore[arg-type]


async def test_without_keys_others_are_users(
    gateway: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ps_sglang.gateway.access.authentication._is_of_this_machine", lambda _: 0)
    assert await status(gateway, {}) == 200
    state, answer = await ask(gateway, "ops", "GET", "/workers")
    assert (state, answer["error"]["code"]) == (403, "admin_required")
    assert "only from its own machine" in answer["error"]["message"]


async def test_wide_hosts_need_keys_or_the_flag(gateway: Setup, tmp_path: Path) -> None:
    config = gateway.cluster.config()
    for host in ("0.0.0.0", "::", "10.0.0.5", "example.org"):
        with pytest.raises(ConfigError, match=r"lets other machines in, and there are no keys"):
            replace(config, host=host)
        assert replace(config, host=host, no_keys=True).host == host
        assert replace(config, host=host, api_keys="keys.txt").host == host
    for host in ("127.0.0.1", "127.3.4.5", "::1", "localhost"):
        assert replace(config, host=host).host == host
    with pytest.raises(ConfigError, match="--no-keys does not go with --api-keys"):
        replace(config, api_keys="keys.txt", no_keys=True)
    with pytest.raises(ConfigError, match="--tls-cert and --tls-key are needed together"):
        replace(config, tls_cert="cert.pem")


async def test_a_gateway_does_not_start_with_a_wrong_file(gateway: Setup, tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("alice\n")
    with pytest.raises(Exception, match=r"keys file \S+: line 1: "):
        build_app(replace(gateway.cluster.config(), api_keys=str(tmp_path / "keys.txt")))


def test_the_tests_keys_are_of_three_tenants() -> None:
    assert len(set(TENANTS.values())) == 3
