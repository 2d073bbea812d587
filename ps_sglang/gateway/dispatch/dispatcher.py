"""Sends the samples of a request to their workers and gives back one answer.

A sample whose workers cannot be reached is sent to others, each worker at most once; one that was
on a worker when it died or fell silent goes to one more (see `poison`). One at which a prefill
worker failed is tried on one more, too: if that can do it the first was at fault, else the request
is. Of several samples of one prompt, the first goes ahead until its prefill leg has ended: the
others then find the prompt in the prefill worker's cache.
"""

import asyncio
import logging
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
)
from contextlib import aclosing
from functools import partial
from typing import Any, Protocol, TypeVar

from ps_sglang.gateway.bodies import merge, sse
from ps_sglang.gateway.bodies.requests import GenerationRequest
from ps_sglang.gateway.bodies.samples import Sample
from ps_sglang.gateway.descriptors import Descriptors
from ps_sglang.gateway.dispatch.background import Background, cancel
from ps_sglang.gateway.dispatch.blame import Standing, at_fault, blaming, either
from ps_sglang.gateway.dispatch.legs import Call, Pair
from ps_sglang.gateway.dispatch.poison import Suspect, Suspects, Turn
from ps_sglang.gateway.dispatch.worker_client import WorkerClient
from ps_sglang.gateway.errors import (
    GatewayError,
    Loss,
    WorkerError,
    WorkerFailed,
    WorkerUnreachable,
)
from ps_sglang.gateway.routing.pool import AnyMember
from ps_sglang.gateway.routing.router import Route, Router
from ps_sglang.gateway.telemetry.metrics import GatewayMetrics
from ps_sglang.gateway.telemetry.timeline import Timeline, Timelines

log = logging.getLogger("ps_sglang.gateway")

_Result = TypeVar("_Result")
_Gates = dict[int, asyncio.Event]
_Queue = asyncio.Queue[tuple[Sample, bytes | Exception]]
_QUEUED_EVENTS = 64


class Watch(Protocol):
    """Is told how requests went on each worker."""

    def succeeded(self, member: AnyMember) -> None:
        """The worker did its part of a request, or began to answer."""
        ...

    def failed(self, member: AnyMember, error: WorkerError) -> None:
        """The worker could not be reached (WorkerUnreachable), or failed where another did not."""
        ...


class Dispatcher:
    """Runs generation requests. Cancelling a caller ends all legs of its request."""

    def __init__(
        self,
        client: WorkerClient,
        router: Router,
        background: Background,
        metrics: GatewayMetrics,
        watch: Watch,
        timelines: Timelines,
        descriptors: Descriptors,
    ) -> None:
        self._client = client
        self._router = router
        self._background = background
        self._metrics = metrics
        self._watch = watch
        self._timelines = timelines
        self._descriptors = descriptors
        self._suspects = Suspects()
        self._running: dict[Pair, tuple[Timeline, Suspect]] = {}

    async def complete(self, request: GenerationRequest, call: Call) -> bytes:
        """The whole JSON answer; raises GatewayError."""
        suspect = Suspect(request)
        with self._descriptors.reserve(len(request.samples)):
            if request.is_single:
                answer = await self._answer(call, suspect, request.samples[0], asyncio.Event())
            else:
                gates = _gates(request)
                work = [self._answer_in_turn(call, suspect, one, gates) for one in request.samples]
                answer = merge.answers(request, await _all_or_none(work))
        self._suspects.answered(suspect)
        return answer

    async def stream(
        self, request: GenerationRequest, call: Call
    ) -> AsyncGenerator[list[bytes], None]:
        """The events of the answer, those together that have come together.

        Raises GatewayError, before the first event where it can.

        The iterator must be closed (`aclosing`), which ends the legs that still run.
        """
        suspect = Suspect(request)
        if request.is_single:
            stream = self._stream(call, suspect, request.samples[0], asyncio.Event())
        else:
            stream = self._merged_stream(request, call, suspect)
        with self._descriptors.reserve(len(request.samples)):
            async with aclosing(stream):
                async for events in stream:
                    yield events
        self._suspects.answered(suspect)

    async def _answer(
        self, call: Call, suspect: Suspect, sample: Sample, gate: asyncio.Event
    ) -> bytes:
        pair, answer = await self._start(call, suspect, sample, gate, Pair.answer)
        await self._close(pair, served=sample.leads)
        return answer

    async def _stream(
        self, call: Call, suspect: Suspect, sample: Sample, gate: asyncio.Event
    ) -> AsyncGenerator[list[bytes], None]:
        pair, events = await self._start(call, suspect, sample, gate, Pair.open_stream)
        try:
            while events:
                yield events
                events = await pair.events()
        except WorkerError as error:
            self._lost(suspect, pair.route, error)
            raise
        finally:
            await self._close(pair, served=sample.leads)

    async def _close(self, pair: Pair, *, served: bool = False) -> None:
        if (running := self._running.pop(pair, None)) is not None:
            self._timelines.ended(running[0])
            if served:
                pair.when_served(partial(self._metrics.served, pair.route.prefill.name))
        await pair.close()

    def interrupt(self, error: GatewayError, concerns: Callable[[Pair], bool]) -> int:
        """End the running samples that `concerns` picks with `error`; returns how many.

        Those that have sent nothing to their client go on elsewhere if `error` is
        WorkerUnreachable.
        """
        picked = [pair for pair in self._running if concerns(pair)]
        for pair in picked:
            pair.fail(error)
        return len(picked)

    async def _start(
        self,
        call: Call,
        suspect: Suspect,
        sample: Sample,
        gate: asyncio.Event,
        first: Callable[[Pair], Awaitable[_Result]],
    ) -> tuple[Pair, _Result]:
        """Find a pair of workers that gives the `first` part of the answer."""
        tried: set[str] = set()
        failed: list[tuple[AnyMember, WorkerFailed]] = []
        while True:
            if call.session is not None and call.session.ended is not None:
                raise call.session.ended
            route, turn = await self._route(call, suspect, sample, tried)
            prefilled = partial(self._prefilled, route, gate, turn)
            pair = Pair(self._client, self._background, call, sample, route, len(tried), prefilled)
            timeline = self._timelines.begin(pair.rid, call.decoder, route)
            self._running[pair] = timeline, suspect
            try:
                with blaming(pair):
                    result = await first(pair)
            except WorkerUnreachable as error:
                await self._close(pair)
                tried.add(self._lost(suspect, route, error).name)
                if len(suspect.left) > 1 or not self._router.can_choose(call.decoder, tried):
                    raise
                log.warning("%s; trying another", error.message)
            except WorkerFailed as error:
                await self._close(pair)
                tried.add(route.prefill.name)
                failed.append((route.prefill, error))
                if len(failed) > 1:
                    raise either(*(one for _, one in failed)) from error
                if not self._router.can_choose(call.decoder, tried):
                    raise
                log.warning("%s; trying another", error.message)
            except BaseException:
                await self._close(pair)
                raise
            else:
                for member, problem in failed:
                    self._watch.failed(member, problem)
                self._watch.succeeded(route.decode)
                if call.timelines is not None:
                    call.timelines[sample.index] = timeline
                return pair, result
            finally:
                if turn is not None:
                    turn.release()

    async def _route(
        self, call: Call, suspect: Suspect, sample: Sample, tried: Collection[str]
    ) -> tuple[Route, Turn | None]:
        """Choose a pair of workers; for a suspect, one where no other suspect is at work."""
        while True:
            self._suspects.refuse_poison(suspect)
            route = self._router.choose(sample.prompt, call.decoder, tried, call.session)
            before = Standing.of(route)
            try:
                turn = await self._suspects.turn(suspect, route.prefill, route.decode)
            except BaseException:
                route.release()
                raise
            # The suspect before this one may have turned out to be poisonous.
            if turn is None or Standing.of(route) == before:
                return route, turn
            turn.release()
            route.release()

    def _lost(self, suspect: Suspect, route: Route, error: WorkerError) -> AnyMember:
        """Note that a worker was lost, which is returned; raises PoisonRequest for the second."""
        member = at_fault(route, error)
        self._watch.failed(member, error)
        if not isinstance(error, WorkerUnreachable):
            return member
        self._router.lost(member)
        if error.loss is not Loss.NOT_TAKEN:
            suspect.left.add(member.name)
        if error.loss is Loss.DIED:
            if self._suspects.died(suspect, member):
                poisonous = self._suspects.error(suspect)
                log.error("%s", poisonous.message)
                self.interrupt(poisonous, partial(self._is_same, suspect))
                raise poisonous from error
            log.warning("%s; request in flight: digest %s", error.message, suspect.digest)
        return member

    def _is_same(self, suspect: Suspect, pair: Pair) -> bool:
        return self._running[pair][1].digest == suspect.digest

    def _prefilled(self, route: Route, gate: asyncio.Event, turn: Turn | None) -> None:
        self._watch.succeeded(route.prefill)
        gate.set()
        if turn is not None:
            turn.prefilled()

    async def _answer_in_turn(
        self, call: Call, suspect: Suspect, sample: Sample, gates: _Gates
    ) -> bytes:
        gate = await _wait_turn(sample, gates)
        try:
            return await self._answer(call, suspect, sample, gate)
        finally:
            gate.set()

    async def _merged_stream(
        self, request: GenerationRequest, call: Call, suspect: Suspect
    ) -> AsyncGenerator[list[bytes], None]:
        gates = _gates(request)
        queue: _Queue = asyncio.Queue(_QUEUED_EVENTS)
        tasks = [
            asyncio.create_task(self._pump(call, suspect, sample, gates, queue))
            for sample in request.samples
        ]
        merger = merge.StreamMerger(request)
        try:
            running = len(tasks)
            while running:
                sample, item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                if item == sse.DONE:
                    running -= 1
                elif (event := merger.event(sample, item)) is not None:
                    yield [event]
            yield list(merger.end())
        finally:
            await cancel(*tasks)

    async def _pump(
        self,
        call: Call,
        suspect: Suspect,
        sample: Sample,
        gates: _Gates,
        queue: _Queue,
    ) -> None:
        gate = await _wait_turn(sample, gates)
        try:
            async with aclosing(self._stream(call, suspect, sample, gate)) as stream:
                async for events in stream:
                    for event in events:
                        await queue.put((sample, event))
        except Exception as error:  # the reader raises it; a lost one would leave it waiting
            await queue.put((sample, error))
        finally:
            gate.set()


def _gates(request: GenerationRequest) -> _Gates:
    return {sample.prompt_index: asyncio.Event() for sample in request.samples}


async def _wait_turn(sample: Sample, gates: _Gates) -> asyncio.Event:
    gate = gates[sample.prompt_index]
    if not sample.leads:
        await gate.wait()
    return gate


async def _all_or_none(work: list[Coroutine[Any, Any, _Result]]) -> list[_Result]:
    """Run all at once; the first failure cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
