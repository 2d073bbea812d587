"""Sends the samples of a request to their workers and gives back one answer.

A sample whose workers cannot be reached is sent to others, each worker at most once; one that was
on a worker when it died or fell silent goes to one more (see `poison`). One at which a prefill
worker failed is tried on one more, too: if that can do it the first was at fault, else the request
is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
)
from contextlib import aclosing
from functools import partial
from typing import Protocol, TypeVar

from ps_sglang.gateway.bodies import sse
from ps_sglang.gateway.bodies.requests import GenerationRequest
from ps_sglang.gateway.bodies.samples import Sample
from ps_sglang.gateway.dispatch import samples
from ps_sglang.gateway.dispatch.background import Background
from ps_sglang.gateway.dispatch.blame import at_fault, blaming, broken_or_leaving, either
from ps_sglang.gateway.dispatch.descriptors import Descriptors
from ps_sglang.gateway.dispatch.pd_request import PrefillDecodeRequest
from ps_sglang.gateway.dispatch.poison import Suspect, Suspects, Turn
from ps_sglang.gateway.dispatch.worker_client import WorkerClient
from ps_sglang.gateway.dispatch.worker_sender import RequestContext
from ps_sglang.gateway.errors import (
    GatewayError,
    Loss,
    WorkerError,
    WorkerFailed,
    WorkerUnreachable,
)
from ps_sglang.gateway.routing.router import Route, Router
from ps_sglang.gateway.routing.worker_state import AnyWorkerState
from ps_sglang.gateway.telemetry.metrics import GatewayMetrics
from ps_sglang.gateway.telemetry.reasons import Retry
from ps_sglang.gateway.telemetry.trace import Trace, Traces

log = logging.getLogger("ps_sglang.gateway")

_Result = TypeVar("_Result")


class OutcomeListener(Protocol):
    """Called with the outcome of requests on each worker."""

    def succeeded(self, worker_state: AnyWorkerState) -> None:
        """The worker did its part of a request, or began to answer."""
        ...

    def failed(self, worker_state: AnyWorkerState, error: WorkerError) -> None:
        """The worker could not be reached (WorkerUnreachable), or failed where another did not."""
        ...


class Dispatcher:
    """Runs generation requests. Cancelling a caller aborts its request on all workers."""

    def __init__(
        self,
        client: WorkerClient,
        router: Router,
        background: Background,
        metrics: GatewayMetrics,
        watch: OutcomeListener,
        traces: Traces,
        descriptors: Descriptors,
    ) -> None:
        self._client = client
        self._router = router
        self._background = background
        self._metrics = metrics
        self._watch = watch
        self._traces = traces
        self._descriptors = descriptors
        self._suspects = Suspects()
        self._running: dict[PrefillDecodeRequest, tuple[Trace, Suspect]] = {}

    async def complete(self, request: GenerationRequest, context: RequestContext) -> bytes:
        """The whole JSON answer; raises GatewayError."""
        suspect = Suspect(request)
        with context.decoder.requests, self._descriptors.reserve(len(request.samples)):
            if request.is_single:
                answer = await self._answer(context, suspect, request.samples[0], asyncio.Event())
            else:
                answer = await samples.answer(request, partial(self._answer, context, suspect))
        self._suspects.answered(suspect)
        return answer

    async def stream(
        self, request: GenerationRequest, context: RequestContext
    ) -> AsyncGenerator[list[bytes], None]:
        """The events of the answer, those together that have come together.

        Raises GatewayError, before the first event where it can.

        The iterator must be closed (`aclosing`), which aborts what still runs.
        """
        suspect = Suspect(request)
        if request.is_single:
            stream = self._stream(context, suspect, request.samples[0], asyncio.Event())
        else:
            stream = samples.stream(request, partial(self._stream, context, suspect))
        with context.decoder.requests, self._descriptors.reserve(len(request.samples)):
            async with aclosing(stream):
                async for events in stream:
                    yield events
        self._suspects.answered(suspect)

    async def _answer(
        self, context: RequestContext, suspect: Suspect, sample: Sample, gate: asyncio.Event
    ) -> bytes:
        pd_request, answer = await self._start(
            context, suspect, sample, gate, PrefillDecodeRequest.answer
        )
        self._running[pd_request][0].is_answered = not context.only_prompt
        await self._close(pd_request, served=sample.leads)
        return answer

    async def _stream(
        self, context: RequestContext, suspect: Suspect, sample: Sample, gate: asyncio.Event
    ) -> AsyncGenerator[list[bytes], None]:
        pd_request, events = await self._start(
            context, suspect, sample, gate, PrefillDecodeRequest.open_stream
        )
        trace, _ = self._running[pd_request]
        trace.first = arrived = time.monotonic()
        try:
            while events:
                trace.events += len(events)
                yield events
                events = await pd_request.events()
                previous, arrived = arrived, time.monotonic()
                # The last ones only end the stream.
                if events and events[-1] != sse.DONE:
                    self._metrics.next_token(trace.decoder, arrived - previous)
            trace.is_answered = True
        except WorkerError as error:
            self._lost(suspect, pd_request.route, error)
            raise
        finally:
            await self._close(pd_request, served=sample.leads)

    async def _close(self, pd_request: PrefillDecodeRequest, *, served: bool = False) -> None:
        if (running := self._running.pop(pd_request, None)) is not None:
            self._traces.ended(running[0])
            if served:
                name = pd_request.route.prefills.name
                pd_request.when_served(partial(self._metrics.served, name))
        await pd_request.close()

    def interrupt(
        self, error: GatewayError, concerns: Callable[[PrefillDecodeRequest], bool]
    ) -> int:
        """End the running samples that `concerns` picks with `error`; returns how many.

        Those that have sent nothing to their client go on elsewhere if `error` is
        WorkerUnreachable.
        """
        picked = [pd_request for pd_request in self._running if concerns(pd_request)]
        for pd_request in picked:
            pd_request.fail(error)
        return len(picked)

    async def _start(
        self,
        context: RequestContext,
        suspect: Suspect,
        sample: Sample,
        gate: asyncio.Event,
        first: Callable[[PrefillDecodeRequest], Awaitable[_Result]],
    ) -> tuple[PrefillDecodeRequest, _Result]:
        """Find a pair of workers that gives the `first` part of the answer."""
        tried: set[str] = set()
        failed: list[tuple[AnyWorkerState, WorkerFailed]] = []
        while True:
            if context.session is not None and context.session.ended is not None:
                raise context.session.ended
            route, turn = await self._route(context, suspect, sample, tried)
            prefilled = partial(self._prefilled, context, sample, route, gate, turn)
            spans = None
            if context.spans is not None:
                spans = context.spans.attempt(route, counts_prompt=sample.leads)
            pd_request = PrefillDecodeRequest(
                self._client,
                self._background,
                context,
                sample,
                route,
                len(tried),
                prefilled,
                spans.headers if spans else {},
            )
            trace = self._traces.begin(pd_request.rid, context.decoder.name, route, spans)
            trace.session = None if context.session is None else context.session.id
            self._running[pd_request] = trace, suspect
            if route.prefill is None:
                # The worker itself computes a prefix once for all that ask for it together, and
                # when a whole answer is prefilled it does not say.
                gate.set()
            try:
                with trace.noting_failure(), blaming(pd_request):
                    result = await first(pd_request)
            except WorkerUnreachable as error:
                await self._close(pd_request)
                tried.add(self._lost(suspect, route, error).name)
                if len(suspect.left) > 1 or not self._router.can_choose(context.decoder, tried):
                    raise
                log.warning("%s; trying another", error.message)
                not_taken = error.loss is Loss.NOT_TAKEN
                self._metrics.retried(Retry.UNREACHABLE if not_taken else Retry.LOST)
            except WorkerFailed as error:
                await self._close(pd_request)
                tried.add(route.prefills.name)
                failed.append((route.prefills, error))
                if len(failed) > 1:
                    raise either(*(one for _, one in failed)) from error
                if not self._router.can_choose(context.decoder, tried):
                    raise
                log.warning("%s; trying another", error.message)
                self._metrics.retried(Retry.FAILED)
            except BaseException:
                await self._close(pd_request)
                raise
            else:
                for worker_state, problem in failed:
                    self._watch.failed(worker_state, problem)
                self._watch.succeeded(route.decode)
                if context.traces is not None:
                    context.traces[sample.index] = trace
                return pd_request, result
            finally:
                if turn is not None:
                    turn.release()

    async def _route(
        self, context: RequestContext, suspect: Suspect, sample: Sample, tried: Collection[str]
    ) -> tuple[Route, Turn | None]:
        """Choose a pair of workers; for a suspect, one where no other suspect is at work."""
        while True:
            self._suspects.refuse_poison(suspect)
            route = self._router.choose(sample.prompt, context.decoder, tried, context.session)
            state = broken_or_leaving(route)
            try:
                turn = await self._suspects.turn(suspect, route.workers)
            except BaseException:
                route.release()
                raise
            # The suspect before this one may have turned out to be poisonous.
            if turn is None or broken_or_leaving(route) == state:
                return route, turn
            turn.release()
            route.release()

    def _lost(self, suspect: Suspect, route: Route, error: WorkerError) -> AnyWorkerState:
        """Note that a worker was lost, which is returned; raises PoisonRequest for the second."""
        worker_state = at_fault(route, error)
        self._watch.failed(worker_state, error)
        if not isinstance(error, WorkerUnreachable):
            return worker_state
        self._router.lost(worker_state)
        if error.loss is not Loss.NOT_TAKEN:
            suspect.left.add(worker_state.name)
        if error.loss is Loss.DIED:
            if self._suspects.died(suspect, worker_state):
                poisonous = self._suspects.error(suspect)
                log.error("%s", poisonous.message)
                self.interrupt(poisonous, partial(self._is_same, suspect))
                raise poisonous from error
            log.warning("%s; request in flight: digest %s", error.message, suspect.digest)
        return worker_state

    def _is_same(self, suspect: Suspect, pd_request: PrefillDecodeRequest) -> bool:
        return self._running[pd_request][1].digest == suspect.digest

    def _prefilled(
        self,
        context: RequestContext,
        sample: Sample,
        route: Route,
        gate: asyncio.Event,
        turn: Turn | None,
    ) -> None:
        if context.prefilled is not None:
            context.prefilled(sample.index)
        self._watch.succeeded(route.prefills)
        gate.set()
        if turn is not None:
            turn.prefilled()
