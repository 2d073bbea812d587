"""What the gateway counts, and that no client can make it count under names of its own."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ps_sglang.gateway.access import key_file
from ps_sglang.gateway.access.key_file import KeyEntry
from ps_sglang.gateway.access.limits import KeyLimits
from ps_sglang.gateway.access.principal import KeyRole, Principal
from ps_sglang.gateway.errors import (
    BadRequest,
    EngineError,
    GatewayBusy,
    GatewayError,
    LimitExceeded,
    NoWorker,
)
from ps_sglang.gateway.limits import DEFAULT_LIMITS
from ps_sglang.gateway.state import GATEWAY
from ps_sglang.gateway.telemetry.reasons import Cancel, Rejection, Retry, cancel_of, rejection_of
from tests.gateway.gateway_setup import Setup, running, serving, stream_by_tokens
from tests.support.standin_engine import CHAT, COMPLETIONS, GENERATE, Plan

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]
BODY = {"model": "a", "prompt": "x"}


async def exported(gateway: Setup) -> Values:
    async with gateway.http.get(gateway.url + "/metrics") as response:
        text = await response.text()
    return {
        (sample.name.removeprefix("ps_sglang_gateway_"), frozenset(sample.labels.items())): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def value(gateway: Setup, name: str, **labels: str) -> float:
    return (await exported(gateway))[name, frozenset(labels.items())]


async def test_a_stream_tells_the_time_between_its_tokens(gateway: Setup) -> None:
    await stream_by_tokens(gateway, 5)
    # The first event is no gap, and the end carries no token; the last one may come with it.
    count = await value(gateway, "inter_token_latency_seconds_count", decoder="a")
    assert count in (3, 4)
    assert await value(gateway, "time_to_first_token_seconds_count", decoder="a") == 1


async def test_open_streams(gateway: Setup) -> None:
    step = gateway.decode().plan.step = asyncio.Semaphore(1)
    body = {**BODY, "stream": True}
    async with gateway.http.post(gateway.url + COMPLETIONS, json=body) as response:
        await response.content.readany()
        assert await value(gateway, "open_streams", decoder="a") == 1
        for _ in range(5):
            step.release()
        await response.read()
    assert await value(gateway, "open_streams", decoder="a") == 0


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (Plan(die=True), Retry.LOST),
        (Plan(refuse=(500, {"error": {"message": "no"}})), Retry.FAILED),
    ],
)
async def test_retries(replicated: Setup, plan: Plan, reason: Retry) -> None:
    """One of two prefill workers fails."""
    failing = replicated.cluster.prefill[0]
    failing.plan = plan
    asked = 0
    while not failing.requests:
        asked += 1
        assert (await replicated.post(COMPLETIONS, {**BODY, "prompt": f"x{asked}"}))[0] == 200
    for one in Retry:
        expected = float(one is reason)
        assert await value(replicated, "retries_total", reason=one.value) == expected


async def test_a_worker_that_cannot_be_reached_is_a_retry(replicated: Setup) -> None:
    await replicated.cluster.decode["a"][0].stop()
    for _ in range(2):  # whichever is chosen first
        assert (await replicated.post(COMPLETIONS, BODY))[0] == 200
    assert await value(replicated, "retries_total", reason="unreachable") == 1


async def test_cancels(gateway: Setup) -> None:
    gateway.decode().plan.hang = True
    hangs_up = asyncio.create_task(gateway.post(COMPLETIONS, BODY))
    await gateway.decode().saw(1)
    hangs_up.cancel()
    aborted = asyncio.create_task(gateway.post(GENERATE, {"model": "a", "text": "x", "rid": "me"}))
    await gateway.decode().saw(2)
    async with gateway.http.post(gateway.url + "/abort_request", json={"rid": "me"}) as response:
        assert response.status == 200
    await aborted
    ended = asyncio.create_task(gateway.post(COMPLETIONS, {**BODY, "session_id": "s"}))
    await gateway.decode().saw(3)
    async with gateway.http.delete(gateway.url + "/sessions/s") as response:
        assert response.status == 200
    await ended
    await gateway.decode().saw_hang_up(3)
    for reason in Cancel:
        assert await value(gateway, "cancels_total", reason=reason.value) == 1


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        (COMPLETIONS, {"model": "a"}, Rejection.INVALID),
        (COMPLETIONS, {**BODY, "model": "nobody"}, Rejection.MODEL_NOT_FOUND),
        (GENERATE, {"model": "a", "input_ids": [1] * 200}, Rejection.TOO_LONG),
        ("/v1/nothing", {}, Rejection.NOT_FOUND),
    ],
)
async def test_rejections(
    gateway: Setup, path: str, body: dict[str, Any], reason: Rejection
) -> None:
    assert (await gateway.post(path, body))[0] >= 400
    for one in Rejection:
        assert await value(gateway, "rejections_total", reason=one.value) == (one is reason)


async def test_without_a_worker_requests_are_rejected(gateway: Setup) -> None:
    await gateway.http.post(gateway.url + "/workers/prefill-0/drain")
    status, _ = await gateway.post(COMPLETIONS, BODY)
    assert status == 503
    assert await value(gateway, "rejections_total", reason="no_worker") == 1


@pytest.mark.parametrize("limit", ["requests at once", "queued requests", "queued tokens"])
async def test_a_limit_that_is_reached(gateway: Setup, limit: str) -> None:
    field = "max_concurrent_requests" if limit == "requests at once" else "max_" + named(limit)
    limits = replace(DEFAULT_LIMITS, **{field: 9})
    async with serving(gateway.cluster, limits=limits) as limited:
        gate = limited.prefill.plan.gate = asyncio.Event()
        prompts = ["one two three four five six"] if limit == "queued tokens" else ["x"] * 9
        first = asyncio.create_task(limited.post(COMPLETIONS, {**BODY, "prompt": prompts}))
        await limited.prefill.saw(1)
        status, _ = await limited.post(COMPLETIONS, {**BODY, "prompt": prompts})
        assert status == 429
        assert await value(limited, "rejections_total", reason=named(limit)) == 1
        gate.set()
        assert (await first)[0] == 200


def named(limit: str) -> str:
    return limit.replace(" ", "_")


async def test_keys_that_are_wrong_or_too_fast(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    slow = Principal("slow", KeyRole.ADMIN, "t", KeyLimits(requests_per_minute=1))
    key_file.add(path, KeyEntry(slow, key_file.digest_of("secret")))
    key = {"x-api-key": "secret"}
    async with running(api_keys=str(path)) as gateway:
        statuses = [
            (await gateway.post(COMPLETIONS, BODY, headers=headers))[0]
            for headers in ({}, {"x-api-key": "other"}, key, key)
        ]
        assert statuses == [401, 401, 200, 429]
        async with gateway.http.get(gateway.url + "/metrics", headers=key) as response:
            text = await response.text()
    assert 'ps_sglang_gateway_rejections_total{reason="unauthorized"} 2.0' in text
    assert 'ps_sglang_gateway_rejections_total{reason="requests_a_minute"} 1.0' in text


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (GatewayBusy("x"), Rejection.BUSY),
        (GatewayError("x", status=429, code="rate_limit_exceeded"), Rejection.LIMIT),
        (LimitExceeded("x", limit="queued tokens"), Rejection.QUEUED_TOKENS),
        (GatewayError("x", status=401), Rejection.UNAUTHORIZED),
        (GatewayError("x", status=403), Rejection.FORBIDDEN),
        (GatewayError("x", status=408), Rejection.SLOW),
        (GatewayError("x", status=409, code="worker_conflict"), Rejection.CONFLICT),
        (GatewayError("x", status=422, code="poison_request"), Rejection.POISON),
        (BadRequest("x", status=413), Rejection.INVALID),
        (NoWorker("x"), Rejection.NO_WORKER),
        (EngineError("x", status=500), None),
        (GatewayError("x", status=499, code="request_aborted"), None),
        (GatewayError("x", status=409, code="session_ended"), None),
    ],
)
def test_why_an_error_refuses(error: GatewayError, reason: Rejection | None) -> None:
    assert rejection_of(error) is reason


def test_an_answer_was_not_given_up() -> None:
    assert cancel_of(200, None) is None
    assert cancel_of(400, BadRequest("x")) is None


async def test_made_up_names_make_no_labels(gateway: Setup) -> None:
    """Whatever a client names: label sets grow with what is served, not with what is sent."""
    await flood(gateway, "first")
    before = (await exported(gateway)).keys()
    for number in range(20):
        await flood(gateway, f"name-{number}")
    after = (await exported(gateway)).keys()
    assert after - before == set()
    assert not any("name-" in label for _, labels in after for _, label in labels)


async def flood(gateway: Setup, name: str) -> None:
    """Requests that name something which does not exist, in every place that takes a name."""
    hints = {"hints": {"next": name}}
    for path, body in (
        (COMPLETIONS, {"model": name, "prompt": "x"}),
        (COMPLETIONS, {**BODY, "session_id": name, "user": name, "cache_salt": name}),
        (COMPLETIONS, {**BODY, **hints}),
        (CHAT, {"model": name, "messages": [{"role": "user", "content": "x"}]}),
        (GENERATE, {"model": "a", "text": "x", "rid": name}),
        (f"/models/{name}{COMPLETIONS}", {"prompt": "x"}),
        (f"/models/{name}/v1/{name}", {}),
        (f"/{name}", {}),
        ("/v1/messages", {"model": name, "max_tokens": 1, "messages": []}),
        ("/v1/responses", {"model": name, "input": "x"}),
    ):
        headers = {"x-request-id": name, "user-agent": name, "x-session-id": name}
        async with gateway.http.post(gateway.url + path, json=body, headers=headers) as response:
            await response.read()
    async with gateway.http.request(name.upper(), gateway.url + COMPLETIONS) as response:
        await response.read()


async def test_each_reason_counts_from_nothing(gateway: Setup) -> None:
    """A rate over a counter that begins with 1 does not see the first."""
    counted = await exported(gateway)
    reasons = itertools.chain(
        (("retries_total", one) for one in Retry),
        (("cancels_total", one) for one in Cancel),
        (("rejections_total", one) for one in Rejection),
    )
    for name, reason in reasons:
        assert counted[name, frozenset({("reason", reason.value)})] == 0
    assert gateway.app[GATEWAY].metrics is not None
