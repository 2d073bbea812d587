"""A request's trace, from what its workers tell over their event streams."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ps_sglang.events.messages import Span
from ps_sglang.gateway.telemetry import trace
from tests.gateway.gateway_setup import Setup, running
from tests.support.standin_engine import CHAT, COMPLETIONS, GENERATE, Worker

BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "a", "messages": [{"role": "user", "content": "x"}]},
    COMPLETIONS: {"model": "a", "prompt": "x"},
    GENERATE: {"model": "a", "text": "x"},
}
WANTED = {trace.HEADER: "1"}
SECONDS = {
    "queue": 0.25,
    "wait": 0.5,
    "prefill": 2.0,
    "pull": 0.125,
    "first_step": 0.0625,
    "decode": 1.5,
}
TOKENS = {"computed": 30, "tree": 69, "own": 40, "pulled": 59, "pulled_bytes": 5900}


def prefill_record(rid: str) -> Span:
    return Span(
        rid=rid, role="prefill", began=1000.0, queue=0.25, wait=0.5, prefill=2.0, computed=30,
        held=69,
    )  # fmt: skip


def decode_record(rid: str) -> Span:
    """The decode worker asks at 1000.5, the prefill ends at 1002.75, the pages land at 1002.875."""
    return Span(
        rid=rid, role="decode", began=1000.25, queue=0.25, pull=2.375, first_step=0.0625,
        decode=1.5, held=40, pulled=59, pulled_bytes=5900, output=7,
    )  # fmt: skip


@pytest.fixture
async def fed() -> AsyncIterator[Setup]:
    """A gateway that hears its workers' events."""
    async with running(events=True) as gateway:
        await subscribed(gateway)
        yield gateway


async def subscribed(gateway: Setup) -> None:
    """The gateway hears all its workers."""
    # Who has had a batch is subscribed to spans, too: that came before.
    for worker in gateway.cluster.workers:
        nothing = f'ps_sglang_gateway_feed_total{{what="batches",worker="{worker.name}"}} 0.0'
        while nothing in await metrics_of(gateway):
            pass


async def tell(gateway: Setup, samples: int = 1, *, decode_too: bool = True) -> None:
    """Have the workers tell of the next samples when they have arrived."""
    decode = gateway.decode()
    await decode.saw(samples)
    for body in decode.requests[:samples]:
        publish(gateway.prefill, prefill_record(body["rid"]))
        if decode_too:
            publish(decode, decode_record(body["rid"]))


def publish(worker: Worker, record: Span) -> None:
    assert worker.publisher is not None
    worker.publisher.record(record)


def check(told: dict[str, Any], rid: str) -> None:
    total = told["seconds"].pop("total")
    assert total > 0
    assert told == {
        "rid": rid,
        "prefill_worker": "prefill-0",
        "decode_worker": "a-0",
        "seconds": SECONDS,
        "tokens": TOKENS,
    }


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("n", [1, 2])
async def test_in_a_whole_answer(fed: Setup, path: str, n: int) -> None:
    body = {**BODIES[path], "n": n}
    if path == GENERATE:
        body = {"model": "a", "text": "x", "sampling_params": {"n": n}}
    (status, answer), _ = await asyncio.gather(fed.post(path, body, headers=WANTED), tell(fed, n))
    assert status == 200
    results = answer if isinstance(answer, list) else [answer]
    told = [one["timeline"] for one in results] if path == GENERATE else answer["timeline"]
    assert len(told) == n
    for one in told:
        check(one, one["rid"])
    assert {one["rid"] for one in told} == {body["rid"] for body in fed.decode().requests}


@pytest.mark.parametrize("path", BODIES)
async def test_at_the_end_of_a_stream(fed: Setup, path: str) -> None:
    body = {**BODIES[path], "stream": True}
    teller = asyncio.create_task(tell(fed))
    async with fed.http.post(fed.url + path, json=body, headers=WANTED) as response:
        *_, last, done, end = (await response.read()).split(b"\n\n")
    await teller
    assert (done, end) == (b"data: [DONE]", b"")
    chunk = json.loads(last.removeprefix(b"data: "))
    (told,) = chunk.pop("timeline")
    check(told, fed.decode().requests[0]["rid"])
    assert chunk == ({} if path == GENERATE else {"choices": []})


@pytest.mark.parametrize("headers", [{}, {trace.HEADER: "0"}])
async def test_only_on_request(fed: Setup, headers: dict[str, str]) -> None:
    _, answer = await fed.post(COMPLETIONS, BODIES[COMPLETIONS], headers=headers)
    assert "timeline" not in answer


async def test_without_events_there_is_the_total_only(gateway: Setup) -> None:
    _, answer = await gateway.post(COMPLETIONS, BODIES[COMPLETIONS], headers=WANTED)
    (told,) = answer["timeline"]
    assert set(told["seconds"]) == {"total"}
    assert told["tokens"] == {}


async def test_a_worker_that_tells_nothing_is_not_waited_for_long(
    fed: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "LATE_SECONDS", 1.0)
    (_, answer), _ = await asyncio.gather(
        fed.post(COMPLETIONS, BODIES[COMPLETIONS], headers=WANTED),
        tell(fed, decode_too=False),
    )
    (told,) = answer["timeline"]
    assert set(told["seconds"]) == {"queue", "wait", "prefill", "total"}


async def test_in_the_log_and_counted(fed: Setup, caplog: pytest.LogCaptureFixture) -> None:
    """Two decoders' turns on one prompt: the second finds what the first brought in."""
    with caplog.at_level(logging.INFO, logger="ps_sglang.timeline"):
        for _ in range(2):
            await asyncio.gather(
                fed.post(COMPLETIONS, BODIES[COMPLETIONS], headers=WANTED), tell(fed)
            )
            fed.decode().requests.clear()
    lines = [one.getMessage() for one in caplog.records if one.name == "ps_sglang.timeline"]
    assert len(lines) == 2
    assert lines[0].startswith("ps-")
    assert (
        "model=a prefill_worker=prefill-0 decode_worker=a-0 queue_ms=250.0 wait_ms=500.0 "
        "prefill_ms=2000.0 pull_ms=125.0 first_step_ms=62.5 decode_ms=1500.0 total_ms="
    ) in lines[0]
    assert lines[0].endswith(" computed=30 tree=69 own=40 pulled=59 pulled_bytes=5900 output=7")
    metrics = await metrics_of(fed)
    assert 'ps_sglang_gateway_base_tokens_total{decoder="a",source="computed"} 60.0' in metrics
    assert 'ps_sglang_gateway_base_tokens_total{decoder="a",source="own"} 80.0' in metrics
    assert 'ps_sglang_gateway_base_tokens_total{decoder="a",source="pulled"} 118.0' in metrics
    assert 'ps_sglang_gateway_pulled_bytes_total{decoder="a"} 11800.0' in metrics
    assert 'ps_sglang_gateway_stage_seconds_sum{stage="prefill"} 4.0' in metrics
    assert 'ps_sglang_gateway_output_tokens_total{decoder="a"} 14.0' in metrics
    assert "ps_sglang_gateway_cross_decoder_hit_ratio 0.0" in metrics


async def metrics_of(gateway: Setup) -> str:
    async with gateway.http.get(gateway.url + "/metrics") as response:
        return await response.text()
