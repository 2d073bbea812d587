"""Events of a stream, however the network cuts it."""

from __future__ import annotations

import pytest

from ps_sglang.gateway.bodies import sse

STREAM = b'data: {"a": "\xc3\xa4\\n\\n"}\n\n: ping\n\nevent: x\ndata: 5\n\ndata: [DONE]\n\n'
EVENTS = [part + b"\n\n" for part in STREAM.split(b"\n\n")[:-1]]


@pytest.mark.parametrize("size", range(1, len(STREAM) + 1))
def test_events_are_found_in_pieces_of_any_size(size: int) -> None:
    splitter = sse.Splitter()
    pieces = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert [event for piece in pieces for event in splitter.events(piece)] == EVENTS


def test_an_event_does_not_wait_for_the_next_piece() -> None:
    splitter = sse.Splitter()
    assert splitter.events(EVENTS[0] + EVENTS[1][:3]) == EVENTS[:1]
    assert splitter.events(EVENTS[1][3:]) == EVENTS[1:2]


def test_an_unfinished_event_is_no_event() -> None:
    splitter = sse.Splitter()
    assert splitter.events(EVENTS[0] + b"data: {") == EVENTS[:1]
    assert splitter.events(b"}\n") == []
    assert splitter.events(b"\n") == [b"data: {}\n\n"]


def test_several_blank_lines() -> None:
    splitter = sse.Splitter()
    assert splitter.events(b"a\n\n\n\n") == [b"a\n\n", b"\n\n"]
    assert splitter.events(b"b\n\n\n") == [b"b\n\n"]
    assert splitter.events(b"c\n\n") == [b"\nc\n\n"]


def test_payloads() -> None:
    found = [sse.payload(event) for event in EVENTS]
    assert found == [{"a": "ä\n\n"}, None, None, None]
    assert sse.payload(sse.event({"a": 1})) == {"a": 1}
