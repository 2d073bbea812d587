"""OpenTelemetry traces, exported over OTLP/HTTP; needs the packages of the extra `otel`.

A client's request is one trace, below the client's own span where it sends a `traceparent`::

    chat math                  the request (SERVER)
      prefill_request          an attempt's request to a prefill worker (CLIENT)
        queue, wait, prefill   what the worker did, by its span
      decode_request           ... and to a decode worker (CLIENT)
        queue, handoff, decode

An aggregated worker has a `decode_request` only, with all that it did. Names of attributes are
those of OpenTelemetry's semantic conventions for generative AI, or begin with `ps_sglang`. None
holds anything of a prompt or an answer. Workers get their own request's context as `traceparent`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from typing import Final

from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ps_sglang import __version__
from ps_sglang.events.messages import Span
from ps_sglang.gateway.bodies.requests import GenerationRequest
from ps_sglang.gateway.bodies.samples import Endpoint
from ps_sglang.gateway.errors import GatewayError
from ps_sglang.gateway.routing.router import Route
from ps_sglang.gateway.telemetry.trace import Trace

FLUSH_SECONDS: Final = 1.0
"""How long the last traces may take at the gateway's end."""
_PROPAGATOR: Final = TraceContextTextMapPropagator()
_OPERATIONS: Final = {
    Endpoint.CHAT: "chat",
    Endpoint.COMPLETIONS: "text_completion",
    Endpoint.GENERATE: "text_completion",
}
# Numbers of a request that are worth keeping, by their places in a body.
_PARAMETERS: Final = {
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
}
_Value = str | int | float | bool


class Tracing:
    """Exports the traces of all requests."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint` is the collector's URL for traces, such as http://localhost:4318/v1/traces.

        The SDK's own variables apply: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES,
        OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS and so on.
        """
        resource = Resource.create({"service.version": __version__})
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "ps_sglang"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("ps_sglang", __version__)

    def begin(
        self, request: GenerationRequest, route: str, headers: Mapping[str, str], seconds: float
    ) -> RequestSpans:
        """A request that began `seconds` ago on `route`, with these headers of its client."""
        operation = _OPERATIONS[request.endpoint]
        attributes: dict[str, _Value] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "ps_sglang",
            "gen_ai.request.model": request.decoder,
            "gen_ai.request.choice.count": len(request.samples),
            "gen_ai.request.stream": request.stream,
            "gen_ai.response.id": request.samples[0].rid,
            "http.request.method": "POST",
            "http.route": route,
            **_parameters(request),
        }
        if request.session is not None and request.named:
            attributes["gen_ai.conversation.id"] = request.session
        root = self._tracer.start_span(
            f"{operation} {request.decoder}",
            _PROPAGATOR.extract(headers),
            SpanKind.SERVER,
            attributes,
            start_time=time.time_ns() - round(seconds * 1e9),
        )
        return RequestSpans(self._tracer, root)

    async def close(self) -> None:
        """Export what is left, if that takes no longer than FLUSH_SECONDS."""
        # A daemon: a collector that does not answer must not hold up the end.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, FLUSH_SECONDS)


def _parameters(request: GenerationRequest) -> dict[str, _Value]:
    body = request.samples[0].body
    given = {**body, **(body.get("sampling_params") or {})}
    return {
        f"gen_ai.request.{name}": value
        for field, name in _PARAMETERS.items()
        if isinstance(value := given.get(field), int | float)
    }


class RequestSpans:
    """The spans of one client's request."""

    def __init__(self, tracer: api.Tracer, root: api.Span) -> None:
        self._tracer = tracer
        self._root = root
        self._context = api.set_span_in_context(root)
        self._open = 0
        self._ended_at: int | None = None
        self._input = self._output = self._cached = 0

    def attempt(self, route: Route, *, counts_prompt: bool) -> AttemptSpans:
        """A sample is being sent to its workers; `counts_prompt`: it is its prompt's first."""
        self._open += 1
        return AttemptSpans(self._tracer, self._context, self, route, counts_prompt=counts_prompt)

    def end(self, status: int, error: GatewayError | None) -> None:
        """The client has its answer, or will not get one."""
        self._ended_at = time.time_ns()
        self._root.set_attribute("http.response.status_code", status)
        if error is not None or status >= 400:
            kind = str(status) if error is None or error.code is None else error.code
            self._root.set_attribute("error.type", kind)
        if status >= 500:
            self._root.set_status(Status(StatusCode.ERROR))
        self._end_root()

    def _attempt_ended(self, trace: Trace, *, counts_prompt: bool) -> None:
        """Add up what an attempt took, if it gave an answer."""
        self._open -= 1
        if trace.failure is None:
            tokens = trace.tokens()
            self._output += trace.output_tokens
            if counts_prompt and "computed" in tokens:
                # The boundary token is no part of the base prefix.
                self._input += tokens["computed"] + tokens["tree"] + 1
                self._cached += tokens["tree"]
        self._end_root()

    def _end_root(self) -> None:
        if self._ended_at is None or self._open:
            return
        if self._input:
            self._root.set_attribute("gen_ai.usage.input_tokens", self._input)
            self._root.set_attribute("gen_ai.usage.cache_read.input_tokens", self._cached)
        if self._output:
            self._root.set_attribute("gen_ai.usage.output_tokens", self._output)
        self._root.end(self._ended_at)


class AttemptSpans:
    """The requests of one attempt at a sample; `headers` are what each worker gets, by role."""

    def __init__(
        self,
        tracer: api.Tracer,
        context: Context,
        request: RequestSpans,
        route: Route,
        *,
        counts_prompt: bool,
    ) -> None:
        self._tracer = tracer
        self._request = request
        self._counts_prompt = counts_prompt
        self._spans: dict[str, api.Span] = {}
        self.headers: dict[str, dict[str, str]] = {}
        for worker_state in route.workers:
            worker = worker_state.worker
            span = tracer.start_span(
                f"{worker.role}_request",
                context,
                SpanKind.CLIENT,
                {"ps_sglang.worker": worker.name, "url.full": worker.url},
            )
            self._spans[worker.role] = span
            headers = self.headers[worker.role] = {}
            _PROPAGATOR.inject(headers, api.set_span_in_context(span))

    def end(self, trace: Trace) -> None:
        """All is known that will be known of the attempt."""
        assert trace.total is not None, "only what has ended is exported"
        ended_at = time.time_ns() - _ns(time.monotonic() - trace.started - trace.total)
        for role, span in self._spans.items():
            context = api.set_span_in_context(span)
            span.set_attribute("ps_sglang.rid", trace.rid)
            end = ended_at
            for told in self._told(trace, role):
                end = self._add_stages(told, span, context)
            if trace.failure is not None:
                span.set_attribute("error.type", trace.failure)
                span.set_status(Status(StatusCode.ERROR))
            span.end(end)
        self._request._attempt_ended(trace, counts_prompt=self._counts_prompt)

    def _told(self, trace: Trace, role: str) -> list[Span]:
        """What a worker told; an aggregated one does both roles' work."""
        roles = (role,) if trace.route.prefill is not None else ("prefill", "decode")
        return [trace.spans[one] for one in roles if one in trace.spans]

    def _add_stages(self, told: Span, span: api.Span, context: Context) -> int:
        """Add a worker's stages as spans of their own; returns the end of the last (Unix, ns)."""
        at = told.began
        if told.role == "prefill":
            stages = {"queue": told.queue, "wait": told.wait, "prefill": told.prefill}
            tokens = {"computed": told.computed, "held": told.held}
        else:
            stages = {
                "queue": told.queue,
                "handoff": told.pull,
                "decode": told.first_step + told.decode,
            }
            tokens = {"output": told.output}
            if told.pulled or told.held:  # an aggregated worker has told of its tree already
                tokens |= {
                    "held": told.held,
                    "pulled": told.pulled,
                    "pulled_bytes": told.pulled_bytes,
                }
        for name, count in tokens.items():
            span.set_attribute(f"ps_sglang.tokens.{name}", count)
        for name, seconds in stages.items():
            if seconds:
                stage = self._tracer.start_span(name, context, start_time=_ns(at))
                if name == "decode" and told.first_step:
                    stage.add_event("first_token", timestamp=_ns(at + told.first_step))
                at += seconds
                stage.end(_ns(at))
        return _ns(at + (told.send if told.role == "prefill" else 0.0))


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
