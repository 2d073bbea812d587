"""Sends the samples of a request to their workers and gives back one answer.

A sample whose workers cannot be reached is sent to others, each worker at most once; one that was
on a worker when it died or fell silent goes to one more (see `poison`). A stream that has begun
goes on there, from the output tokens that it has had (see `bodies.continuation`). One at which a
prefill worker failed is tried on one more, too: if that can do it the first was at fault, else the
request is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
)
from contextlib import aclosing
from functools import partial
from typing import Protocol, TypeVar

from ps_sglang.gateway.bodies import sse
from ps_sglang.gateway.bodies.continuation import Delivered
from ps_sglang.gateway.bodies.requests import GenerationRequest
from ps_sglang.gateway.bodies.samples import Sample
from ps_sglang.gateway.dispatch import samples
from ps_sglang.gateway.dispatch.attempt import Attempt, Job
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
from ps_sglang.gateway.telemetry.trace import Traces

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
        self._running: dict[PrefillDecodeRequest, Attempt] = {}

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
        job = Job(context, suspect, sample, gate)
        pd_request, answer = await self._start(job, PrefillDecodeRequest.answer)
        self._running[pd_request].trace.is_answered = not context.only_prompt
        await self._close(pd_request, served=sample.leads)
        return answer

    async def _stream(
        self, context: RequestContext, suspect: Suspect, sample: Sample, gate: asyncio.Event
    ) -> AsyncGenerator[list[bytes], None]:
        job = Job(context, suspect, sample, gate)
        pd_request, events = await self._start(job, PrefillDecodeRequest.open_stream)
        delivered = Delivered(context.endpoint)
        previous: float | None = None
        try:
            while events:
                now = time.monotonic()
                if new := delivered.take(events):
                    self._passes_on(pd_request, new, now, previous)
                    previous = now
                    yield new
                try:
                    events = await pd_request.events()
                except WorkerError as error:
                    await self._leave(job, pd_request, error)
                    pd_request, events = await self._start(job, PrefillDecodeRequest.open_stream)
                    self._metrics.continued(context.decoder.name)
                    delivered.continues()
            self._running[pd_request].trace.is_answered = True
        finally:
            await self._close(pd_request, served=sample.leads)

    def _passes_on(
        self,
        pd_request: PrefillDecodeRequest,
        events: list[bytes],
        now: float,
        previous: float | None,
    ) -> None:
        """Note that the client gets events now, and had the ones before at `previous`."""
        attempt = self._running[pd_request]
        attempt.end_turn()
        trace = attempt.trace
        trace.events += len(events)
        if trace.first is None:
            trace.first = now
        # The last ones only end the stream.
        if previous is not None and events[-1] != sse.DONE:
            self._metrics.next_token(trace.decoder, now - previous)

    async def _leave(self, job: Job, pd_request: PrefillDecodeRequest, error: WorkerError) -> None:
        """Prepare a stream that was broken off to go on elsewhere; raises `error` if it cannot."""
        route, decoder = pd_request.route, job.context.decoder
        lost = self._lost(job.suspect, route, error)
        job.had = max(job.had, pd_request.output_ids, key=len)
        # Other weights would say something else.
        job.tried |= {lost.name} | decoder.unlike(route.decode)
        if not isinstance(error, WorkerUnreachable) or not job.had:
            raise error
        if len(job.suspect.left) > 1 or not self._router.can_choose(decoder, job.tried):
            raise error
        await self._close(pd_request)
        log.warning("%s; its stream continues on another", error.message)
        self._metrics.retried(_reason(error))

    async def _close(self, pd_request: PrefillDecodeRequest, *, served: bool = False) -> None:
        if (attempt := self._running.pop(pd_request, None)) is not None:
            attempt.end_turn()
            self._traces.ended(attempt.trace)
            if served:
                name = pd_request.route.prefills.name
                pd_request.when_served(partial(self._metrics.served, name))
        await pd_request.close()

    def interrupt(
        self, error: GatewayError, concerns: Callable[[PrefillDecodeRequest], bool]
    ) -> int:
        """End the running samples that `concerns` picks with `error`; returns how many.

        They go on elsewhere, where they can, if `error` is WorkerUnreachable.
        """
        picked = [pd_request for pd_request in self._running if concerns(pd_request)]
        for pd_request in picked:
            pd_request.fail(error)
        return len(picked)

    async def _start(
        self, job: Job, first: Callable[[PrefillDecodeRequest], Awaitable[_Result]]
    ) -> tuple[PrefillDecodeRequest, _Result]:
        """Find a pair of workers that gives the `first` part of the answer."""
        context, suspect, sample, tried = job.context, job.suspect, job.sample, job.tried
        failed: list[tuple[AnyWorkerState, WorkerFailed]] = []
        while True:
            if context.session is not None and context.session.ended is not None:
                raise context.session.ended
            route, turn = await self._route(job)
            prefilled = partial(self._prefilled, job, route, turn)
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
                job.had,
            )
            trace = self._traces.begin(pd_request.rid, context.decoder.name, route, spans)
            trace.session = None if context.session is None else context.session.id
            attempt = self._running[pd_request] = Attempt(trace, suspect)
            if route.prefill is None:
                # The worker itself computes a prefix once for all that ask for it together, and
                # when a whole answer is prefilled it does not say.
                job.gate.set()
            try:
                with trace.noting_failure(), blaming(pd_request):
                    result = await first(pd_request)
            except WorkerUnreachable as error:
                await self._close(pd_request)
                tried.add(self._lost(suspect, route, error).name)
                if len(suspect.left) > 1 or not self._router.can_choose(context.decoder, tried):
                    raise
                log.warning("%s; trying another", error.message)
                self._metrics.retried(_reason(error))
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
                if turn is not None and job.had:
                    # What the worker before died of may come again until all is said again.
                    attempt.turn, turn = turn, None
                    attempt.turn.end_soon()
                return pd_request, result
            finally:
                if turn is not None:
                    turn.release()

    async def _route(self, job: Job) -> tuple[Route, Turn | None]:
        """Choose a pair of workers; for a suspect, one where no other suspect is at work."""
        context, suspect = job.context, job.suspect
        while True:
            self._suspects.refuse_poison(suspect)
            route = self._router.choose(
                job.sample.prompt, context.decoder, job.tried, context.session
            )
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
        return self._running[pd_request].suspect.digest == suspect.digest

    def _prefilled(self, job: Job, route: Route, turn: Turn | None) -> None:
        if job.context.prefilled is not None:
            job.context.prefilled(job.sample.index)
        self._watch.succeeded(route.prefills)
        job.gate.set()
        if turn is not None:
            turn.prefilled()


def _reason(error: WorkerUnreachable) -> Retry:
    return Retry.UNREACHABLE if error.loss is Loss.NOT_TAKEN else Retry.LOST
