"""Python's garbage collector: requests leave it nothing to do, and it keeps out of their way."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ps_sglang.gateway.dispatch.background import cancel
from ps_sglang.gateway.gc_control import LEAST, MOST, collect_in_pauses
from tests.gateway.gateway_setup import Setup

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "one"}], "model": "a"},
    "/v1/completions": {"prompt": "one", "model": "a"},
    "/generate": {"text": "one", "model": "a"},
}


class Cycle:
    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def nothing_collected() -> Iterator[None]:
    """No collections in the test but its own; what those find is kept in `gc.garbage`."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", BODIES)
async def test_requests_leave_no_cycles(
    gateway: Setup, nothing_collected: None, route: str, stream: bool
) -> None:
    async def ask() -> None:
        body = {**BODIES[route], "stream": stream}
        async with gateway.http.post(gateway.url + route, json=body) as response:
            assert response.status == 200
            await response.read()

    await ask()  # what exists once
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    for _ in range(20):
        await ask()
    gc.collect()
    ours = [one for one in gc.garbage if type(one).__module__.startswith("ps_sglang.")]
    assert ours == []


@pytest.fixture
def only_by_hand() -> Iterator[None]:
    """The thresholds are put back, whatever the test does to them."""
    before = gc.get_threshold()
    yield
    assert gc.get_threshold() == before
    gc.set_threshold(*before)


def old_cycle(young_collections: int) -> asyncio.Event:
    """Garbage that a young collection does not look at, and so many young collections.

    The event is set when it is collected.
    """
    cycle, gone = Cycle(), asyncio.Event()
    weakref.finalize(cycle, gone.set)
    for _ in range(young_collections):
        gc.collect(0)
    return gone


@pytest.mark.parametrize(
    "busy", [lambda turn: (1, 7), lambda turn: (0, turn)], ids=["one runs", "they come and go"]
)
async def test_old_garbage_waits_for_a_pause(
    only_by_hand: None, busy: Callable[[int], tuple[int, int]]
) -> None:
    turn, pauses = 0, False
    asked_often = asyncio.Event()

    def requests() -> tuple[int, int]:
        nonlocal turn
        turn += 1
        if turn == 5:
            asked_often.set()
        return (0, 7) if pauses else busy(turn)

    task = asyncio.create_task(collect_in_pauses(requests, 0.0))
    await asyncio.sleep(0)  # it has begun
    gone = old_cycle(LEAST)
    await asked_often.wait()
    assert not gone.is_set()
    pauses = True
    await gone.wait()
    await cancel(task)


async def test_old_garbage_does_not_wait_for_ever(only_by_hand: None) -> None:
    task = asyncio.create_task(collect_in_pauses(lambda: (1, 1), 0.0))
    await asyncio.sleep(0)  # it has begun
    await old_cycle(MOST).wait()
    await cancel(task)
