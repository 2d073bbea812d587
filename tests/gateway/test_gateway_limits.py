"""Limits of keys and of the whole gateway, as clients meet them."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ps_sglang.gateway.access import key_file
from ps_sglang.gateway.access.key_file import KeyEntry
from ps_sglang.gateway.access.limits import KeyLimits
from ps_sglang.gateway.access.principal import KeyRole, Principal
from ps_sglang.gateway.config import ConfigError
from ps_sglang.gateway.limits import DEFAULT_LIMITS, GatewayLimits
from ps_sglang.gateway.state import GATEWAY
from tests.gateway.gateway_setup import Setup, serving
from tests.support.standin_engine import Cluster

COMPLETIONS = {"model": "a", "prompt": "one two three"}
CHAT = {"model": "a", "messages": [{"role": "user", "content": "one"}], "max_tokens": 3}
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": COMPLETIONS,
    "/v1/chat/completions": CHAT,
    "/generate": {"model": "a", "text": "one"},
    "/v1/messages": CHAT,
    "/v1/responses": {"model": "a", "input": "one"},
}
RATE = "x-ratelimit-{}-requests"
ANTHROPIC_RATE = "anthropic-ratelimit-requests-{}"


@asynccontextmanager
async def limited(
    limits: GatewayLimits = DEFAULT_LIMITS, **keys: KeyLimits
) -> AsyncIterator[Setup]:
    """A gateway with these limits; without keys everybody may ask."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "keys")
        for name, own in keys.items():
            who = Principal(name, KeyRole.USER, name, own)
            key_file.add(path, KeyEntry(who, key_file.digest_of(f"secret of {name}")))
        api_keys = str(path) if keys else None
        async with (
            Cluster.running() as cluster,
            serving(cluster, api_keys=api_keys, limits=limits) as setup,
        ):
            yield setup


async def ask(
    gateway: Setup, key: str | None = None, path: str = "/v1/completions", **more: Any
) -> tuple[int, dict[str, str], str]:
    """Status, headers in lower case, and text of the answer."""
    headers = {} if key is None else {"x-api-key": f"secret of {key}"}
    body = {**ROUTES[path], **more}
    async with gateway.http.post(gateway.url + path, json=body, headers=headers) as response:
        told = {name.lower(): value for name, value in response.headers.items()}
        return response.status, told, await response.text()


def is_unused(gateway: Setup) -> bool:
    total = gateway.app[GATEWAY].limiter.total
    return (total.requests, total.queued, total.queued_tokens) == (0, 0, 0)


@pytest.mark.parametrize("path", ROUTES)
async def test_a_key_that_has_too_many_at_once_is_told(path: str) -> None:
    async with limited(k=KeyLimits(requests_at_once=1), other=KeyLimits(1)) as gateway:
        gate = gateway.decode().plan.gate = asyncio.Event()
        first = asyncio.create_task(ask(gateway, "k", path))
        await gateway.decode().saw(1)
        status, headers, text = await ask(gateway, "k", path)
        assert status == 429
        assert headers["retry-after"] == "1"
        answer = json.loads(text)
        error = answer["error"]
        assert "The key 'k' has reached its limit of 1 requests at once" in error["message"]
        assert error["type"] == "rate_limit_error"
        if path == "/v1/messages":
            assert answer["type"] == "error"
        else:
            assert error["code"] == "rate_limit_exceeded"
        # Nobody else is hurt: neither another key, nor who was admitted.
        second = asyncio.create_task(ask(gateway, "other", path))
        await gateway.decode().saw(2)
        gate.set()
        assert [(await one)[0] for one in (first, second)] == [200, 200]
        assert (await ask(gateway, "k", path))[0] == 200
        assert is_unused(gateway)


@pytest.mark.parametrize("stream", [False, True])
async def test_beyond_the_queue_clients_are_told_at_once(stream: bool) -> None:
    """The prefill worker does nothing; three wait, the others are refused, and the three end."""
    async with limited(GatewayLimits(max_queued_requests=3)) as gateway:
        gate = gateway.prefill.plan.gate = asyncio.Event()
        admitted = []
        for number in range(3):
            admitted.append(asyncio.create_task(ask(gateway, stream=stream, prompt=str(number))))
            await gateway.prefill.saw(number + 1)
        refused = await asyncio.gather(*(ask(gateway, stream=stream) for _ in range(50)))
        assert {status for status, _, _ in refused} == {429}
        assert {headers["retry-after"] for _, headers, _ in refused} == {"1"}
        assert len(gateway.prefill.requests) == 3
        gate.set()
        for status, _, text in await asyncio.gather(*admitted):
            assert status == 200
            assert not stream or text.endswith("data: [DONE]\n\n")
        assert is_unused(gateway)


@pytest.mark.parametrize("stream", [False, True])
async def test_only_what_is_not_prefilled_is_in_the_queue(stream: bool) -> None:
    async with limited(GatewayLimits(max_queued_requests=1)) as gateway:
        step = gateway.decode().plan.step = asyncio.Semaphore(0)
        asked = []
        for number in range(3):
            asked.append(asyncio.create_task(ask(gateway, stream=stream, prompt=str(number))))
            await gateway.decode().saw(number + 1)
            while gateway.app[GATEWAY].limiter.total.queued:  # noqa: ASYNC110, it only counts
                await asyncio.sleep(0)
        assert gateway.app[GATEWAY].limiter.total.requests == 3
        for _ in range(9):
            step.release()
        assert [(await one)[0] for one in asked] == [200] * 3


async def test_who_hangs_up_counts_no_more() -> None:
    async with limited(k=KeyLimits(requests_at_once=1)) as gateway:
        gateway.decode().plan.hang = True
        asked = asyncio.create_task(ask(gateway, "k", stream=True))
        await gateway.decode().saw(1)
        asked.cancel()
        await gateway.decode().saw_hang_up()
        gateway.decode().plan.hang = False
        assert (await ask(gateway, "k"))[0] == 200
        assert is_unused(gateway)


async def test_each_answer_counts() -> None:
    async with limited(k=KeyLimits(requests_at_once=4)) as gateway:
        assert (await ask(gateway, "k", n=2, prompt=["a", "b"]))[0] == 200
        status, headers, text = await ask(gateway, "k", n=5)
        assert (status, "retry-after" in headers) == (400, False)
        assert "needs 5 requests at once" in json.loads(text)["error"]["message"]


async def test_tokens_count_while_they_wait() -> None:
    async with limited(k=KeyLimits(queued_tokens=10)) as gateway:
        gate = gateway.prefill.plan.gate = asyncio.Event()
        first = asyncio.create_task(ask(gateway, "k", prompt=[5] * 8, n=3))
        await gateway.prefill.saw(1)
        status, _, text = await ask(gateway, "k", prompt=[6] * 3)
        assert (status, "limit of 10 queued tokens" in text) == (429, True)
        assert (await ask(gateway, "k", prompt=[6] * 11))[0] == 400
        second = asyncio.create_task(ask(gateway, "k", prompt=[6] * 2))
        await gateway.prefill.saw(2)
        gate.set()
        assert [(await one)[0] for one in (first, second)] == [200, 200]


@pytest.mark.parametrize("stream", [False, True])
async def test_openais_headers_tell_what_is_left(stream: bool) -> None:
    async with limited(k=KeyLimits(requests_per_minute=2), free=KeyLimits()) as gateway:
        _, headers, _ = await ask(gateway, "k", stream=stream)
        assert headers[RATE.format("limit")] == "2"
        assert headers[RATE.format("remaining")] == "1"
        assert headers[RATE.format("reset")].endswith("s")
        await ask(gateway, "k", stream=stream)
        status, headers, text = await ask(gateway, "k", stream=stream)
        assert status == 429
        assert headers[RATE.format("remaining")] == "0"
        assert 1 <= int(headers["retry-after"]) <= 30
        assert "The key 'k' may send 2 requests a minute" in json.loads(text)["error"]["message"]
        # What has no limit says nothing of one.
        status, headers, _ = await ask(gateway, "free", stream=stream)
        assert status == 200
        assert not [name for name in headers if "ratelimit" in name]


async def test_anthropics_headers_tell_what_is_left() -> None:
    async with limited(k=KeyLimits(requests_per_minute=1)) as gateway:
        _, headers, _ = await ask(gateway, "k", "/v1/messages")
        assert headers[ANTHROPIC_RATE.format("limit")] == "1"
        assert headers[ANTHROPIC_RATE.format("remaining")] == "0"
        reset = datetime.fromisoformat(headers[ANTHROPIC_RATE.format("reset")])
        assert reset.tzinfo is not None
        status, headers, text = await ask(gateway, "k", "/v1/messages")
        assert (status, json.loads(text)["error"]["type"]) == (429, "rate_limit_error")
        assert int(headers["retry-after"]) >= 1


async def test_a_refused_request_leaves_the_connection_to_the_next() -> None:
    async with limited(k=KeyLimits(requests_per_minute=1)) as gateway:
        answers = [await ask(gateway, "k") for _ in range(3)]
    assert [status for status, _, _ in answers] == [200, 429, 429]
    assert not [headers for _, headers, _ in answers if headers.get("connection") == "close"]


@pytest.mark.parametrize("path", ROUTES)
async def test_a_request_ends_at_its_deadline(path: str) -> None:
    async with limited(GatewayLimits(request_timeout=0.1)) as gateway:
        gateway.decode().plan.hang = True
        status, headers, text = await ask(gateway, None, path)
        assert status == 504
        assert headers["x-should-retry"] == "false"
        assert "not answered in 0.1 s" in json.loads(text)["error"]["message"]
        await gateway.decode().saw_hang_up()
        await gateway.prefill.saw_hang_up()
        assert is_unused(gateway)


async def test_a_stream_ends_at_its_deadline() -> None:
    async def ends(path: str) -> None:
        async with limited(GatewayLimits(request_timeout=1)) as gateway:
            gateway.decode().plan.step = asyncio.Semaphore(1)
            status, _, text = await ask(gateway, None, path, stream=True)
            assert status == 200
            assert "not answered in 1 s" in text
            assert "[DONE]" not in text
            await gateway.decode().saw_hang_up()
            assert gateway.pending() == 0

    await asyncio.gather(*map(ends, ROUTES))


async def test_each_tenant_has_so_many_sessions() -> None:
    """The oldest goes, of the same tenant."""
    async with limited(GatewayLimits(max_sessions=2), k=KeyLimits(), other=KeyLimits()) as gateway:
        for key, session in (("k", "1"), ("other", "1"), ("k", "2"), ("k", "3")):
            assert (await ask(gateway, key, session_id=session))[0] == 200
        sessions = gateway.app[GATEWAY].sessions
        left = [len(sessions.of(tenant)) for tenant in ("k", "other")]
        assert left == [2, 1]
        assert sessions.of("k").get("1") is None


async def test_a_limit_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match="`max_queued_requests` is 0, must be at least 1"):
        async with limited(GatewayLimits(max_queued_requests=0)):
            pass
