"""Sends the samples of a request to their workers and gives back one answer.

A sample whose workers cannot be reached is sent to others, each worker at most once. Of several
samples of one prompt, the first goes ahead until its prefill leg has ended: the others then find
the prompt in the prefill worker's cache.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

import aiohttp

from ps_sglang.gateway import merge, sse
from ps_sglang.gateway.errors import WorkerUnreachable
from ps_sglang.gateway.legs import Background, Call, Pair, cancel
from ps_sglang.gateway.metrics import GatewayMetrics
from ps_sglang.gateway.requests import GenerationRequest, Sample
from ps_sglang.gateway.routing import Router

log = logging.getLogger("ps_sglang.gateway")

_Result = TypeVar("_Result")
_Gates = dict[int, asyncio.Event]
_Queue = asyncio.Queue[tuple[Sample, bytes | Exception]]
_QUEUED_EVENTS = 64


class Dispatcher:
    """Runs generation requests. Cancelling a caller ends all legs of its request."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        router: Router,
        background: Background,
        metrics: GatewayMetrics,
    ) -> None:
        self._session = session
        self._router = router
        self._background = background
        self._metrics = metrics

    async def complete(self, request: GenerationRequest, call: Call) -> bytes:
        """The whole JSON answer; raises GatewayError."""
        if request.is_single:
            return await self._answer(call, request.samples[0], asyncio.Event())
        gates = _gates(request)
        answers = await _all_or_none(
            [self._answer_in_turn(call, sample, gates) for sample in request.samples]
        )
        return merge.answers(request, answers)

    def stream(self, request: GenerationRequest, call: Call) -> AsyncGenerator[bytes, None]:
        """The events of the answer; raises GatewayError, before the first event where it can.

        The iterator must be closed (`aclosing`), which ends the legs that still run.
        """
        if request.is_single:
            return self._stream(call, request.samples[0], asyncio.Event())
        return self._merged_stream(request, call)

    async def _answer(self, call: Call, sample: Sample, gate: asyncio.Event) -> bytes:
        pair, answer = await self._start(call, sample, gate, Pair.answer)
        await pair.close()
        return answer

    async def _stream(
        self, call: Call, sample: Sample, gate: asyncio.Event
    ) -> AsyncGenerator[bytes, None]:
        pair, first = await self._start(call, sample, gate, Pair.open_stream)
        try:
            for event in first:
                yield event
            async for event in pair.events():
                yield event
        finally:
            await pair.close()

    async def _start(
        self,
        call: Call,
        sample: Sample,
        gate: asyncio.Event,
        first: Callable[[Pair], Awaitable[_Result]],
    ) -> tuple[Pair, _Result]:
        """Find a pair of workers that gives the `first` part of the answer."""
        tried: set[str] = set()
        while True:
            route = self._router.choose(sample.prompt, call.decoder, tried)
            self._metrics.routed(route)
            pair = Pair(self._session, self._background, call, sample, route, len(tried), gate.set)
            try:
                return pair, await first(pair)
            except WorkerUnreachable as error:
                await pair.close()
                tried.add(error.worker.name)
                self._router.mark_unreachable(error.worker.name)
                if not self._router.can_choose(call.decoder, tried):
                    raise
                log.warning("%s; trying another", error.message)
            except BaseException:
                await pair.close()
                raise

    async def _answer_in_turn(self, call: Call, sample: Sample, gates: _Gates) -> bytes:
        gate = await _wait_turn(sample, gates)
        try:
            return await self._answer(call, sample, gate)
        finally:
            gate.set()

    async def _merged_stream(
        self, request: GenerationRequest, call: Call
    ) -> AsyncGenerator[bytes, None]:
        gates = _gates(request)
        queue: _Queue = asyncio.Queue(_QUEUED_EVENTS)
        tasks = [
            asyncio.create_task(self._pump(call, sample, gates, queue))
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
                    yield event
            for event in merger.end():
                yield event
        finally:
            await cancel(*tasks)

    async def _pump(
        self,
        call: Call,
        sample: Sample,
        gates: _Gates,
        queue: _Queue,
    ) -> None:
        gate = await _wait_turn(sample, gates)
        try:
            async with aclosing(self._stream(call, sample, gate)) as events:
                async for event in events:
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
