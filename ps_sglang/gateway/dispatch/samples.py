"""Several samples of one request at once, as one answer.

Of several samples of one prompt, the first goes ahead until its prefill request has ended: the
others then find the prompt in the prefill worker's cache. An aggregated worker gets them together.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from ps_sglang.gateway.bodies import merge, sse
from ps_sglang.gateway.bodies.requests import GenerationRequest
from ps_sglang.gateway.bodies.samples import Sample
from ps_sglang.gateway.dispatch.background import cancel

# One per prompt: set when its first sample has been prefilled, or has ended.
_Gates = dict[int, asyncio.Event]
_Queue = asyncio.Queue[tuple[Sample, bytes | Exception]]
_QUEUED_EVENTS = 64

AnswerOne = Callable[[Sample, asyncio.Event], Awaitable[bytes]]
"""Gives the answer to one sample; sets the event when the sample has been prefilled."""
StreamOne = Callable[[Sample, asyncio.Event], AsyncGenerator[list[bytes], None]]
"""Gives the events of one sample's answer; sets the event when the sample has been prefilled."""


async def answer(request: GenerationRequest, answer_one: AnswerOne) -> bytes:
    """The whole answer; the first sample that fails ends the others, and its error is raised."""
    gates = _gates(request)

    async def in_turn(sample: Sample) -> bytes:
        gate = await _wait_turn(sample, gates)
        try:
            return await answer_one(sample, gate)
        finally:
            gate.set()

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(in_turn(sample)) for sample in request.samples]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return merge.answers(request, [task.result() for task in tasks])


async def stream(
    request: GenerationRequest, stream_one: StreamOne
) -> AsyncGenerator[list[bytes], None]:
    """The events of all samples, as they come; raises the error of the first that fails."""
    gates = _gates(request)
    queue: _Queue = asyncio.Queue(_QUEUED_EVENTS)
    tasks = [
        asyncio.create_task(_pump(sample, stream_one, gates, queue)) for sample in request.samples
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


async def _pump(sample: Sample, stream_one: StreamOne, gates: _Gates, queue: _Queue) -> None:
    gate = await _wait_turn(sample, gates)
    try:
        async with aclosing(stream_one(sample, gate)) as chunks:
            async for events in chunks:
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
