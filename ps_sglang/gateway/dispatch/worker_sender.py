"""Sends the prefill request and the decode request of one attempt, and aborts them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from ps_sglang.gateway.bodies.samples import Endpoint
from ps_sglang.gateway.config import Worker
from ps_sglang.gateway.dispatch.worker_client import WorkerClient
from ps_sglang.gateway.dispatch.worker_connection import WorkerResponse
from ps_sglang.gateway.errors import (
    GatewayError,
    Loss,
    WorkerUnreachable,
    engine_error,
    reaching,
    require_process,
)
from ps_sglang.gateway.routing.decoder_state import DecoderState
from ps_sglang.gateway.routing.sessions import Session
from ps_sglang.gateway.routing.worker_state import AnyWorkerState
from ps_sglang.gateway.telemetry.trace import Trace

if TYPE_CHECKING:
    from ps_sglang.gateway.telemetry.otel import RequestSpans

ABORT_SECONDS = 5.0

# How SGLang begins its refusal of a request whose id it knows.
_DUPLICATE_ID = "Duplicate request ID"


@dataclass(frozen=True)
class RequestContext:
    """What the samples of one client request have in common. `tenant` is whose it is.

    `only_prompt`: nobody reads the output, so that no adapter is needed for it.
    `names_rid`: the client named the request, and may abort it by that name. `spans` are its
    spans where traces are exported.
    """

    endpoint: Endpoint
    decoder: DecoderState
    tenant: str
    session: Session | None = None
    only_prompt: bool = False
    # By the samples' places in the answer, where the client wants them.
    traces: dict[int, Trace] | None = None
    names_rid: bool = False
    spans: RequestSpans | None = None
    # Called with a sample's place in the answer once its prompt is prefilled, perhaps again.
    prefilled: Callable[[int], None] | None = None


class WorkerSender:
    """Posts to workers under one request id; `trace_headers` are for each role's worker."""

    def __init__(
        self,
        client: WorkerClient,
        context: RequestContext,
        rid: str,
        trace_headers: Mapping[str, Mapping[str, str]],
    ) -> None:
        self._client = client
        self._context = context
        self._rid = rid
        self._trace_headers = trace_headers

    async def post(
        self, worker_state: AnyWorkerState, body: dict[str, Any], headers: Mapping[str, str]
    ) -> WorkerResponse:
        """Send `body`; returns the head of the answer. Raises WorkerUnreachable, GatewayBusy."""
        worker, incarnation = worker_state.worker, worker_state.incarnation
        with reaching(worker):
            response = await self._client.post(
                worker.url,
                self._context.endpoint.value,
                msgspec.json.encode(body),
                {**worker_state.headers, **self._trace_headers.get(worker.role, {}), **headers},
            )
        try:
            require_process(worker, incarnation, response.incarnation)
        except WorkerUnreachable:
            response.close()
            raise
        return response

    async def abort(self, worker_state: AnyWorkerState) -> None:
        """Abort the request. If this fails, the closed connection still ends it, later."""
        body = msgspec.json.encode({"rid": self._rid})
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(ABORT_SECONDS):
                with await self._client.post(
                    worker_state.worker.url, "/abort_request", body, worker_state.headers
                ) as response:
                    await response.read()


def refusal(worker: Worker, response: WorkerResponse, content: bytes) -> GatewayError:
    """What an answer whose status is not 200 means."""
    error = engine_error(response.status, content)
    if response.was_resent and error.message.startswith(_DUPLICATE_ID):
        # The worker took the first copy, then the connection broke. The second copy is refused, and
        # the answer to the first is lost: another pair of workers, with another id, may do.
        return WorkerUnreachable(
            worker, "it took the request and closed the connection", Loss.TAKEN
        )
    return error
