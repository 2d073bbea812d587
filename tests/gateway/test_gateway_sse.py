"""Events of a stream, however the network cuts it."""

from collections.abc import AsyncIterator

import pytest

from ps_sglang.gateway.bodies import sse

STREAM = b'data: {"a": "\xc3\xa4\\n\\n"}\n\n: ping\n\nevent: x\ndata: 5\n\ndata: [DONE]\n\n'
EVENTS = [part + b"\n\n" for part in STREAM.split(b"\n\n")[:-1]]


@pytest.mark.parametrize("size", range(1, len(STREAM) + 1))
async def test_events_are_found_in_chunks_of_any_size(size: int) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(STREAM), size):
            yield STREAM[start : start + size]

    assert [event async for event in sse.read_events(chunks())] == EVENTS


async def test_an_event_does_not_wait_for_the_next_chunk() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield EVENTS[0] + EVENTS[1][:3]
        raise AssertionError("the first event is complete")

    assert await anext(sse.read_events(chunks())) == EVENTS[0]


async def test_an_unfinished_event_is_dropped() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield EVENTS[0] + b"data: {"

    assert [event async for event in sse.read_events(chunks())] == EVENTS[:1]


def test_payloads() -> None:
    found = [sse.payload(event) for event in EVENTS]
    assert found == [{"a": "ä\n\n"}, None, None, None]
    assert sse.payload(sse.event({"a": 1})) == {"a": 1}
