"""Tenants are kept apart: nobody learns of, or changes, what is another's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from ps_sglang.events.messages import Release
from ps_sglang.gateway.bodies.checks import Limits
from ps_sglang.gateway.bodies.requests import GenerationRequest, parse
from ps_sglang.gateway.bodies.samples import Endpoint, Served
from ps_sglang.gateway.errors import BadRequest
from ps_sglang.gateway.index.prompts import Prompts
from ps_sglang.gateway.state import GATEWAY
from tests.gateway.gateway_setup import Setup
from tests.gateway.keys_setup import as_, ask, running_with_keys
from tests.gateway.test_gateway_sessions import ended

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"


@pytest.fixture
async def keyed(tmp_path: Path) -> AsyncIterator[Setup]:
    async with running_with_keys(tmp_path / "keys.txt") as setup:
        yield setup


def chat(text: str = "the secret plan", **more: Any) -> dict[str, Any]:
    return {"model": "a", "messages": [{"role": "user", "content": text}], **more}


def parsed(tenant: str, **fields: Any) -> GenerationRequest:
    served = Served(("a",), Limits(vocabulary=500, context_length=100), Prompts(), tenant)
    content = json.dumps({"model": "a", "prompt": "x", **fields}).encode()
    return parse(Endpoint.COMPLETIONS, content, None, {}, served)


def salt_of(tenant: str, **fields: Any) -> str:
    (sample,) = parsed(tenant, **fields).samples
    assert sample.prompt.salt == (sample.body.get("cache_salt") or "")
    assert "extra_key" not in sample.body
    return sample.prompt.salt


def test_no_two_tenants_and_salts_are_alike() -> None:
    parts = ("", "a", "b", "ab", "a b", "team-a", "\n", "\x01")
    tenants = ("", "a", "b", "ab", "team-a")
    salts = {
        (tenant, salt, key): salt_of(tenant, cache_salt=salt, extra_key=key)
        for tenant, salt, key in product(tenants, parts, parts)
    }
    assert len(set(salts.values())) == len(salts)
    assert salts["", "", ""] == "", "without keys everything is as it was"
    assert salts["", "ab", ""] == "ab"


def test_a_salt_cannot_be_forged_and_is_bounded() -> None:
    for name in ("cache_salt", "extra_key"):
        for forged in ("\0team-a\0", "x\0y", salt_of("team-a"), "\0"):
            with pytest.raises(BadRequest, match="a text without NUL"):
                parsed("team-b", **{name: forged})
        with pytest.raises(BadRequest, match="at most 256 characters"):
            parsed("team-b", **{name: "x" * 257})
    longest = salt_of("t" * 64, cache_salt="x" * 256, extra_key="y" * 256)
    # A worker takes 4096, see `engine/guard/requests.py`.
    assert len(longest) < 600


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat()),
        (COMPLETIONS, {"model": "a", "prompt": "the secret plan"}),
        ("/generate", {"model": "a", "text": "the secret plan"}),
        ("/v1/messages", chat(max_tokens=3)),
        (RESPONSES, {"model": "a", "input": "the secret plan"}),
        ("/models/a" + CHAT, chat(stream=True)),
    ],
)
async def test_on_every_route_pages_are_the_tenants(
    keyed: Setup, path: str, body: dict[str, Any]
) -> None:
    """So hit counts can tell of none but one's own: equal prompts meet only under equal salts."""
    for who in ("alice", "anna", "eve"):
        assert (await ask(keyed, who, "POST", path, body))[0] == 200
    for worker in (keyed.prefill, keyed.decode()):
        alice, anna, eve = (one["cache_salt"] for one in worker.requests)
        assert alice == anna != eve


async def test_a_tenants_prefix_cannot_be_probed(keyed: Setup) -> None:
    """The gateway knows who holds a prompt for its tenant only, and explains it to no user."""
    secret = chat("the secret plan " * 20)
    assert (await ask(keyed, "alice", "POST", CHAT, secret))[0] == 200
    inside = keyed.app[GATEWAY]

    def held(tenant: str, **more: Any) -> set[str]:
        content = json.dumps({**secret, **more}).encode()
        request = parse(Endpoint.CHAT, content, None, {}, inside.served_to(tenant))
        return set(inside.cache_index.match(request.samples[0].prompt))

    assert held("team-a") == {"prefill-0", "a-0"}
    assert held("team-b") == held("ops") == held("") == set()
    assert held("team-b", cache_salt="team-a") == held("", extra_key="team-a") == set()
    assert held("team-a", cache_salt="x") == set(), "a client's own salt divides it further"
    for who in ("eve", "alice"):
        status, answer = await ask(keyed, who, "POST", "/debug/route", secret)
        assert (status, set(answer)) == (403, {"error"})
    # An admin may ask for any tenant.
    new = {}
    for tenant in ("team-a", "team-b"):
        _, told = await ask(keyed, "ops", "POST", f"/debug/route?tenant={tenant}", secret)
        (pair,) = told["decisions"][0]["candidates"]
        new[tenant] = pair["cost"]
    assert new["team-a"] < new["team-b"]


async def test_a_timeline_is_of_ones_own_request(keyed: Setup) -> None:
    async with keyed.http.post(
        keyed.url + CHAT, json=chat(), headers=as_("eve", **{"x-timeline": "1"})
    ) as response:
        (timeline,) = (await response.json())["timeline"]
    assert timeline["rid"] == keyed.decode().requests[0]["rid"]


async def test_a_foreign_session_is_not_there(keyed: Setup) -> None:
    step = keyed.decode().plan.step = asyncio.Semaphore(0)
    running = asyncio.create_task(ask(keyed, "alice", "POST", CHAT, chat(session_id="talk")))
    await keyed.decode().saw(1)
    for method, path in (("DELETE", "/sessions/talk"), ("POST", "/sessions/talk/end")):
        status, answer = await ask(keyed, "eve", method, path)
        assert (status, answer["error"]["code"]) == (404, "session_not_found")
        status, _ = await ask(keyed, "eve", method, path + "?tenant=team-a")
        assert status == 403, "an admin's"
    status, answer = await ask(keyed, "anna", "DELETE", "/sessions/talk")
    assert (status, answer["aborted"]) == (200, 1), "one of the same tenant may"
    assert (await running)[1]["error"]["code"] == "session_ended"
    assert step.locked()


async def test_a_session_is_never_shared_by_tenants(tmp_path: Path) -> None:
    async with running_with_keys(tmp_path / "keys.txt", events=True) as gateway:
        sent = chat(session_id="talk", parent_session_id="mother")
        for who in ("alice", "eve"):
            assert (await ask(gateway, who, "POST", CHAT, sent))[0] == 200
        names = [one["session_id"] for one in gateway.prefill.requests]
        assert names == ["team-a\0talk", "team-b\0talk"], "workers pin and release by it"
        # It has another mother there, which says nothing of the one here.
        status, answer = await ask(
            gateway, "eve", "POST", CHAT, chat(session_id="talk", parent_session_id="other")
        )
        assert status == 400
        assert "'mother'" in answer["error"]["message"]
        assert "team-" not in answer["error"]["message"]
        status, answer = await ask(gateway, "eve", "DELETE", "/sessions/talk")
        assert (status, answer["session"], answer["ended"]) == (200, "talk", ["talk"])
        await ended(gateway)
        assert await gateway.prefill.was_told(1) == [Release("team-b\0talk")]
        status, _ = await ask(gateway, "ops", "DELETE", "/sessions/talk?tenant=team-a")
        assert status == 200, "an admin ends any"


async def test_a_foreign_session_cannot_be_released_by_a_hint(keyed: Setup) -> None:
    await ask(keyed, "alice", "POST", CHAT, chat(session_id="talk"))
    await ask(keyed, "eve", "POST", CHAT, chat(session_id="talk", hints={"release": True}))
    await ended(keyed)
    sessions = keyed.app[GATEWAY].sessions
    assert sessions.of("team-a").get("talk") is not None
    assert sessions.of("team-b").get("talk") is None


@pytest.mark.parametrize("id", ["team-a\0talk", "team-a\ntalk"])
async def test_a_session_id_cannot_be_forged(keyed: Setup, id: str) -> None:
    status, answer = await ask(keyed, "eve", "POST", CHAT, chat(session_id=id))
    assert status == 400
    assert "printable" in answer["error"]["message"]


async def test_a_foreign_response_is_not_there(keyed: Setup) -> None:
    _, answer = await ask(keyed, "alice", "POST", RESPONSES, {"model": "a", "input": "secret"})
    id = answer["id"]
    for who in ("eve", "ops"):
        for method, path in (
            ("GET", f"{RESPONSES}/{id}"),
            ("DELETE", f"{RESPONSES}/{id}"),
            ("POST", f"{RESPONSES}/{id}/cancel"),
        ):
            status, error = await ask(keyed, who, method, path)
            assert (status, error["error"]["code"]) == (404, "response_not_found")
        sent = {"model": "a", "input": "go on", "previous_response_id": id}
        assert (await ask(keyed, who, "POST", RESPONSES, sent))[0] == 404
    assert await ask(keyed, "anna", "GET", f"{RESPONSES}/{id}") == (200, answer)
    chosen = f"{RESPONSES}/{id}?tenant=team-a"
    assert (await ask(keyed, "eve", "GET", chosen))[0] == 403
    assert await ask(keyed, "ops", "GET", chosen) == (200, answer), "an admin sees all"


async def test_a_foreign_response_in_progress_is_not_there(keyed: Setup) -> None:
    keyed.decode().plan.step = asyncio.Semaphore(1)
    sent = {"model": "a", "input": "x", "stream": True}
    url = keyed.url + RESPONSES
    async with keyed.http.post(url, json=sent, headers=as_("alice")) as response:
        created = json.loads((await response.content.readuntil(b"\n\n")).split(b"data: ")[1])
        id = created["response"]["id"]
        for method, path in (("GET", f"{RESPONSES}/{id}"), ("POST", f"{RESPONSES}/{id}/cancel")):
            assert (await ask(keyed, "eve", method, path))[0] == 404
        status, told = await ask(keyed, "anna", "POST", f"{RESPONSES}/{id}/cancel")
        assert (status, told["status"]) == (200, "cancelled")
        await response.read()


async def test_a_foreign_request_cannot_be_aborted(keyed: Setup) -> None:
    keyed.decode().plan.step = asyncio.Semaphore(0)
    sent = {"model": "a", "prompt": "x", "rid": "mine"}
    running = [
        asyncio.create_task(ask(keyed, who, "POST", COMPLETIONS, sent)) for who in ("alice", "eve")
    ]
    await keyed.decode().saw(2)
    assert (await ask(keyed, "eve", "POST", "/abort_request", {"rid": "mine"}))[0] == 200
    assert (await running[1])[0] == 499
    assert not running[0].done()
    status, answer = await ask(keyed, "eve", "POST", "/abort_request", {"abort_all": True})
    assert (status, answer["error"]["param"]) == (400, "abort_all")
    status, _ = await ask(keyed, "eve", "POST", "/abort_request?tenant=team-a", {"rid": "mine"})
    assert status == 403
    for rid in (keyed.decode().requests[0]["rid"], "min", "team-a\0mine"):
        await ask(keyed, "eve", "POST", "/abort_request", {"rid": rid})
    assert not running[0].done()
    assert (await ask(keyed, "anna", "POST", "/abort_request", {"rid": "mine"}))[0] == 200
    assert (await running[0])[0] == 499


@pytest.mark.parametrize(
    "headers",
    [
        {"x-tenant": "team-a"},
        {"x-forwarded-for": "127.0.0.1"},
        {"forwarded": "for=127.0.0.1"},
        {"x-real-ip": "127.0.0.1"},
        {"x-ps-sglang-incarnation": "0" * 16},
        {"x-original-url": "/workers"},
        {"x-http-method-override": "DELETE"},
        {"host": "127.0.0.1"},
    ],
)
async def test_no_header_makes_a_client_somebody_else(
    keyed: Setup, headers: dict[str, str]
) -> None:
    async with keyed.http.get(keyed.url + "/workers", headers=as_("eve", **headers)) as response:
        assert response.status == 403
    async with keyed.http.post(
        keyed.url + CHAT, json=chat(), headers=as_("eve", **headers)
    ) as response:
        assert response.status == 200
    assert keyed.decode().requests[0]["cache_salt"] == salt_of("team-b")
    sent = {name.lower(): value for name, value in keyed.decode().headers[0].items()}
    assert all(sent.get(name) != value for name, value in headers.items())


@pytest.mark.parametrize("field", ["tenant", "api_key", "user", "owner"])
async def test_no_field_makes_a_client_somebody_else(keyed: Setup, field: str) -> None:
    await ask(keyed, "eve", "POST", CHAT, chat(**{field: "team-a"}))
    assert keyed.decode().requests[0]["cache_salt"] == salt_of("team-b")


@pytest.mark.parametrize(
    "path", ["//workers", "/./workers", "/v1/../workers", "/%77orkers", "/workers/", "/WORKERS"]
)
async def test_no_spelling_of_a_path_gets_around_the_table(keyed: Setup, path: str) -> None:
    port = int(keyed.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    authorization = as_("eve")["Authorization"]
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\n"
        "Connection: close\r\n\r\n".encode()
    )
    head = await reader.readuntil(b"\r\n\r\n")
    assert int(head.split()[1]) in (400, 403, 404)
    writer.close()


async def test_the_prefetch_for_the_next_decoder_is_the_tenants_too(keyed: Setup) -> None:
    await ask(keyed, "eve", "POST", CHAT, chat(hints={"next": "b"}, session_id="talk"))
    await ended(keyed)
    (prefetch,) = keyed.decode("b").requests
    assert prefetch["cache_salt"] == salt_of("team-b")
    assert prefetch["session_id"] == "team-b\0talk"
