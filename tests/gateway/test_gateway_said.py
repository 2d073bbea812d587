"""What an answer says, from the forms that engines give it."""

from typing import Any

import pytest

from ps_sglang.gateway.bodies import sse
from ps_sglang.gateway.bodies.said import Collector, in_answer
from ps_sglang.gateway.bodies.samples import Surface


def collected(surface: Surface, *chunks: Any) -> Any:
    collector = Collector(surface)
    for chunk in chunks:
        collector.add([sse.event(chunk)])
    collector.add([sse.DONE])
    return collector.said()


def delta(**fields: Any) -> Any:
    return {"choices": [{"index": 0, "delta": fields}]}


def test_whole_answers() -> None:
    message = {"role": "assistant", "content": "hi"}
    chat = b'{"choices": [{"message": {"role": "assistant", "content": "hi"}}]}'
    assert in_answer(Surface.CHAT, chat) == {"message": message}
    assert in_answer(Surface.COMPLETIONS, b'{"choices": [{"text": "hi"}]}') == {"text": "hi"}
    assert in_answer(Surface.GENERATE, b'{"text": "hi", "output_ids": [1]}') == {
        "text": "hi",
        "output_ids": [1],
    }


@pytest.mark.parametrize("content", [b"no", b"[]", b"{}", b'{"choices": []}', b'{"choices": [1]}'])
def test_answers_that_say_nothing(content: bytes) -> None:
    assert in_answer(Surface.CHAT, content) is None


def test_streamed_text() -> None:
    said = collected(
        Surface.CHAT,
        delta(role="assistant", content=""),
        delta(content="he"),
        delta(content="llo"),
        {"choices": [], "usage": {}},
    )
    assert said == {"message": {"role": "assistant", "content": "hello", "tool_calls": None}}
    parts = [{"choices": [{"text": "he"}]}, {"choices": [{"text": "llo"}]}]
    assert collected(Surface.COMPLETIONS, *parts) == {"text": "hello"}
    whole = [{"text": "he"}, {"text": "hello", "output_ids": [1, 2]}]
    assert collected(Surface.GENERATE, *whole) == whole[-1]


def test_streamed_calls_of_tools() -> None:
    def part(index: int, **fields: Any) -> Any:
        return delta(tool_calls=[{"index": index, **fields}])

    said = collected(
        Surface.CHAT,
        part(1, id="two", function={"name": "go", "arguments": ""}),
        part(0, id="one", function={"name": "look", "arguments": '{"at'}),
        part(0, function={"arguments": '": "it"}'}),
        part(1, function={"arguments": "{}"}),
    )
    assert said["message"]["tool_calls"] == [
        {
            "type": "function",
            "id": "one",
            "function": {"name": "look", "arguments": '{"at": "it"}'},
        },
        {"type": "function", "id": "two", "function": {"name": "go", "arguments": "{}"}},
    ]
