"""What an answer says, from the forms that engines give it."""

from __future__ import annotations

from typing import Any

import pytest

from ps_sglang.gateway.bodies import sse
from ps_sglang.gateway.bodies.completion import Collector, in_answer
from ps_sglang.gateway.bodies.samples import Endpoint


def collected(endpoint: Endpoint, *chunks: Any) -> Any:
    collector = Collector(endpoint)
    for chunk in chunks:
        collector.add([sse.event(chunk)])
    collector.add([sse.DONE])
    return collector.completion()


def delta(**fields: Any) -> Any:
    return {"choices": [{"index": 0, "delta": fields}]}


def test_whole_answers() -> None:
    message = {"role": "assistant", "content": "hi"}
    chat = b'{"choices": [{"message": {"role": "assistant", "content": "hi"}}]}'
    assert in_answer(Endpoint.CHAT, chat) == {"message": message}
    assert in_answer(Endpoint.COMPLETIONS, b'{"choices": [{"text": "hi"}]}') == {"text": "hi"}
    assert in_answer(Endpoint.GENERATE, b'{"text": "hi", "output_ids": [1]}') == {
        "text": "hi",
        "output_ids": [1],
    }


@pytest.mark.parametrize("content", [b"no", b"[]", b"{}", b'{"choices": []}', b'{"choices": [1]}'])
def test_answers_that_say_nothing(content: bytes) -> None:
    assert in_answer(Endpoint.CHAT, content) is None


def test_streamed_text() -> None:
    completion = collected(
        Endpoint.CHAT,
        delta(role="assistant", content=""),
        delta(content="he"),
        delta(content="llo"),
        {"choices": [], "usage": {}},
    )
    assert completion == {"message": {"role": "assistant", "content": "hello", "tool_calls": None}}
    parts = [{"choices": [{"text": "he"}]}, {"choices": [{"text": "llo"}]}]
    assert collected(Endpoint.COMPLETIONS, *parts) == {"text": "hello"}
    whole = [{"text": "he"}, {"text": "hello", "output_ids": [1, 2]}]
    assert collected(Endpoint.GENERATE, *whole) == whole[-1]


def test_streamed_calls_of_tools() -> None:
    def part(index: int, **fields: Any) -> Any:
        return delta(tool_calls=[{"index": index, **fields}])

    completion = collected(
        Endpoint.CHAT,
        part(1, id="two", function={"name": "go", "arguments": ""}),
        part(0, id="one", function={"name": "look", "arguments": '{"at'}),
        part(0, function={"arguments": '": "it"}'}),
        part(1, function={"arguments": "{}"}),
    )
    assert completion["message"]["tool_calls"] == [
        {
            "type": "function",
            "id": "one",
            "function": {"name": "look", "arguments": '{"at": "it"}'},
        },
        {"type": "function", "id": "two", "function": {"name": "go", "arguments": "{}"}},
    ]
