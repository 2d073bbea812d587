"""Web pages of other origins: refused with the reason, or let in wherever they ask."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from ps_sglang.gateway.config import ConfigError
from tests.gateway.gateway_setup import Setup, running

PAGE = "http://page.example:3000"
CHAT = "/v1/chat/completions"
ASKED = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}
ALLOWED = "Access-Control-Allow-Origin"


@pytest.fixture
async def open_gateway() -> AsyncIterator[Setup]:
    async with running(cors_origins=(PAGE,)) as setup:
        yield setup


async def preflight(
    gateway: Setup, path: str, **changes: str
) -> tuple[int, Mapping[str, str], Any]:
    headers = {**ASKED, **{name.replace("_", "-"): value for name, value in changes.items()}}
    async with gateway.http.options(gateway.url + path, headers=headers) as response:
        answer = await response.json() if response.status != 204 else None
        return response.status, response.headers, answer


async def test_without_origins_a_preflight_is_refused_with_the_reason(gateway: Setup) -> None:
    status, headers, answer = await preflight(gateway, CHAT)
    assert (status, answer["error"]["code"]) == (403, "origin_not_allowed")
    assert f"--cors-origins {PAGE}" in answer["error"]["message"]
    assert ALLOWED not in headers
    async with gateway.http.get(gateway.url + "/v1/models", headers=ASKED) as response:
        assert (response.status, ALLOWED in response.headers) == (200, False)


@pytest.mark.parametrize("path", [CHAT, "/models/b/generate", "/v1/completions"])
async def test_a_preflight_is_told_what_the_page_may_do(open_gateway: Setup, path: str) -> None:
    status, headers, _ = await preflight(open_gateway, path)
    assert status == 204
    assert headers[ALLOWED] == PAGE
    assert headers["Access-Control-Allow-Methods"] == "POST"
    assert headers["Access-Control-Allow-Headers"] == "authorization,content-type"
    assert headers["Vary"] == "Origin"


async def test_names_of_headers_that_are_none_are_not_repeated(open_gateway: Setup) -> None:
    status, headers, _ = await preflight(
        open_gateway, CHAT, Access_Control_Request_Headers="\udcff, é"
    )
    assert (status, "Access-Control-Allow-Headers" in headers) == (204, False)


async def test_a_preflight_for_what_cannot_be_done_says_so(open_gateway: Setup) -> None:
    status, headers, _ = await preflight(open_gateway, CHAT, Access_Control_Request_Method="PUT")
    assert (status, headers["Allow"], headers[ALLOWED]) == (405, "POST", PAGE)
    assert (await preflight(open_gateway, "/v1/nothing"))[0] == 404
    status, headers, answer = await preflight(open_gateway, CHAT, Origin="http://other.example")
    assert (status, ALLOWED in headers) == (403, False)
    assert f"only to {PAGE}" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (CHAT, {"model": "a", "messages": [{"role": "user", "content": "x"}]}, 200),
        (CHAT, {"model": "a", "messages": [{"role": "user", "content": "x"}], "stream": True}, 200),
        (CHAT, {"model": "z", "messages": [{"role": "user", "content": "x"}]}, 404),
        (CHAT, {"model": "a"}, 400),
        ("/v1/models", {}, 405),
        ("/v1/nothing", {}, 404),
    ],
)
async def test_a_page_may_read_every_answer(
    open_gateway: Setup, path: str, body: Any, status: int
) -> None:
    for origin, allowed in ((PAGE, PAGE), ("http://other.example", None)):
        async with open_gateway.http.post(
            open_gateway.url + path, json=body, headers={"Origin": origin}
        ) as response:
            assert response.status == status
            assert response.headers.get(ALLOWED) == allowed
            assert response.headers["Vary"] == "Origin"
            if allowed:
                assert "x-request-id" in response.headers["Access-Control-Expose-Headers"]


async def test_a_star_lets_every_page_in() -> None:
    async with running(cors_origins=("*",)) as gateway:
        status, headers, _ = await preflight(gateway, CHAT)
        assert (status, headers[ALLOWED], "Vary" in headers) == (204, "*", False)


async def test_what_is_no_origin_is_refused(gateway: Setup) -> None:
    for wrong in ("localhost:3000", "http://page.example/", "HTTP://PAGE", "http://a,http://b"):
        with pytest.raises(ConfigError, match="CORS origin"):
            replace(gateway.cluster.config(), cors_origins=(wrong,))
