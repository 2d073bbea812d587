"""Traces as an OpenTelemetry collector gets them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from ps_sglang.gateway.state import GATEWAY
from tests.gateway.gateway_setup import Setup, serving
from tests.gateway.test_gateway_trace import metrics_of, subscribed, tell
from tests.support.standin_engine import COMPLETIONS, Cluster, Plan

BODY: dict[str, Any] = {"model": "a", "prompt": "a secret", "max_tokens": 9, "temperature": 0.5}
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"


@dataclass
class Collector:
    """Takes OTLP over HTTP."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        if any(span.kind == Span.SPAN_KIND_SERVER for span in self.spans):
            self.ended.set()
        return web.Response()

    def named(self, name: str) -> Span:
        (span,) = (one for one in self.spans if one.name == name)
        return span

    def children(self, parent: Span) -> set[str]:
        return {one.name for one in self.spans if one.parent_span_id == parent.span_id}


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
        yield collector
    finally:
        await runner.cleanup()


@asynccontextmanager
async def traced(collector: Collector, *, events: bool = False) -> AsyncIterator[Setup]:
    """A gateway that exports its traces; the last of them at the end of the block."""
    async with Cluster.running(events=events) as cluster:
        config = replace(cluster.config(), otlp_endpoint=collector.url)
        async with serving(cluster, config=config) as gateway:
            if events:
                await subscribed(gateway)
            yield gateway
            while len(gateway.app[GATEWAY].traces):  # until the workers' spans have come
                await metrics_of(gateway)
        await collector.ended.wait()


def attributes(span: Span) -> dict[str, Any]:
    return {
        one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in span.attributes
    }


async def test_a_request_is_one_trace_below_its_clients() -> None:
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
    async with collecting() as collector:
        async with traced(collector, events=True) as gateway:
            answer, _ = await asyncio.gather(
                gateway.post(COMPLETIONS, BODY, headers=headers), tell(gateway)
            )
            assert answer[0] == 200
        assert {span.trace_id.hex() for span in collector.spans} == {TRACE_ID}
        root = collector.named("text_completion a")
        assert root.parent_span_id.hex() == PARENT_ID
        assert collector.children(root) == {"prefill_request", "decode_request"}
        prefill, decode = map(collector.named, ("prefill_request", "decode_request"))
        assert collector.children(prefill) == {"queue", "wait", "prefill"}
        assert collector.children(decode) == {"queue", "handoff", "decode"}
        told = attributes(root)
        assert (
            told.items()
            >= {
                "gen_ai.operation.name": "text_completion",
                "gen_ai.request.model": "a",
                "gen_ai.request.max_tokens": 9,
                "gen_ai.request.temperature": 0.5,
                "gen_ai.usage.input_tokens": 100,
                "gen_ai.usage.output_tokens": 7,
                "http.response.status_code": 200,
            }.items()
        )
        assert attributes(prefill)["ps_sglang.worker"] == "prefill-0"
        assert not any(b"a secret" in body for body in collector.bodies)


async def test_a_request_that_fails() -> None:
    async with collecting() as collector:
        async with traced(collector) as gateway:
            gateway.prefill.plan = Plan(refuse=(500, {"error": {"message": "no"}}))
            status, _ = await gateway.post(COMPLETIONS, BODY)
        root = collector.named("text_completion a")
        assert attributes(root)["http.response.status_code"] == status
        assert root.status.code == Status.STATUS_CODE_ERROR
        assert "error.type" in attributes(root)


async def test_a_broken_context_of_a_client_is_none() -> None:
    async with collecting() as collector:
        async with traced(collector) as gateway:
            headers = {"traceparent": "00-zz-1-01"}
            assert (await gateway.post(COMPLETIONS, BODY, headers=headers))[0] == 200
        assert collector.named("text_completion a").parent_span_id == b""


async def test_a_collector_that_is_away_harms_no_request() -> None:
    async with Cluster.running() as cluster:
        config = replace(cluster.config(), otlp_endpoint="http://127.0.0.1:9/v1/traces")
        async with serving(cluster, config=config) as gateway:
            assert (await gateway.post(COMPLETIONS, BODY))[0] == 200
