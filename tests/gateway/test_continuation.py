"""What a client gets of a second worker's stream, cut by what it has had of the first one's."""

from __future__ import annotations

from typing import Any

import pytest

from ps_sglang.gateway.bodies import sse
from ps_sglang.gateway.bodies.continuation import Delivered, resumed
from ps_sglang.gateway.bodies.samples import Endpoint
from ps_sglang.gateway.errors import EngineError
from ps_sglang.output_ids import PARAM, comment, split

Json = dict[str, Any]


def chunk(said: Json | None = None, id: str = "one", **choice: Any) -> Json:
    said = {} if said is None else {"delta": said}
    return {"id": id, "created": len(id), "choices": [{"index": 0, **said, **choice}]}


def rest(had: list[Json], again: list[Json], endpoint: Endpoint = Endpoint.CHAT) -> list[Json]:
    """What a client that has `had` some chunks gets of a stream that begins anew."""
    delivered = Delivered(endpoint)
    for one in had:
        assert delivered.take([sse.event(one)]) == [sse.event(one)]
    delivered.continues()
    events = [event for one in again for event in delivered.take([sse.event(one)])]
    assert delivered.take([sse.DONE]) == [sse.DONE]
    return [payload for event in events if (payload := sse.payload(event)) is not None]


ROLE = {"role": "assistant", "content": ""}


def test_text_and_thoughts_are_cut_by_characters() -> None:
    had = [
        chunk(ROLE), chunk({"reasoning_content": "I th"}), chunk({"reasoning_content": "ink"}),
        chunk({"content": "So "}), chunk({"content": "ö"}),
    ]  # fmt: skip
    again = [
        chunk(ROLE, "two"), chunk({"reasoning_content": "I think"}, "two"),
        chunk({"content": "So öl"}, "two"), chunk({"content": "!"}, "two"),
        chunk({}, "two", finish_reason="stop"),
    ]  # fmt: skip
    assert rest(had, again) == [
        chunk({"content": "l"}), chunk({"content": "!"}), chunk({}, finish_reason="stop"),
    ]  # fmt: skip


def call(index: int, name: str | None = None, arguments: str = "", id: str | None = None) -> Json:
    function = {"name": name, "arguments": arguments}
    return {"tool_calls": [{"index": index, "id": id, "function": function}]}


def test_calls_keep_the_id_that_the_client_knows() -> None:
    had = [chunk(call(0, "f", id="call_x")), chunk(call(0, None, '{"a": '))]
    again = [
        chunk(call(0, "f", '{"a"', id="call_y")), chunk(call(0, None, ": 1}")),
        chunk(call(1, "g", id="call_z")), chunk(call(1, None, "{}")),
    ]  # fmt: skip
    assert rest(had, again) == [
        chunk(call(0, None, "1}")), chunk(call(1, "g", id="call_z")), chunk(call(1, None, "{}")),
    ]  # fmt: skip


def test_logprobs_are_cut_by_number() -> None:
    """They may come with another chunk than the text of their token."""
    had = [chunk({"content": "a"}, logprobs={"content": ["A"]}), chunk({"content": "b"})]
    again = [
        chunk({"content": "abc"}, logprobs={"content": ["A", "B", "C"]}),
        chunk({}, logprobs={"content": ["D"]}),
    ]
    assert rest(had, again) == [
        chunk({"content": "c"}, logprobs={"content": ["B", "C"]}),
        chunk({}, logprobs={"content": ["D"]}),
    ]
    old: Json = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [], "text_offset": [-1]}
    new: Json = {"tokens": ["b"], "token_logprobs": [-2.0], "top_logprobs": [], "text_offset": [-1]}
    both = {name: old[name] + new[name] for name in old}
    had = [chunk(text="a", logprobs=old, token_ids=[7], prompt_token_ids=[1, 2])]
    again = [chunk(text="ab", logprobs=both, token_ids=[7, 8], prompt_token_ids=[1, 2])]
    assert rest(had, again, Endpoint.COMPLETIONS) == [
        chunk(text="b", logprobs=new, token_ids=[8], prompt_token_ids=[])
    ]


def test_an_end_comes_once() -> None:
    usage = {"id": "one", "created": 3, "choices": [], "usage": {"completion_tokens": 1}}
    said = [chunk({"content": "a"}), chunk({}, finish_reason="stop")]
    assert rest(said, [*said, usage]) == [usage]
    assert rest([*said, usage], [*said, usage]) == []


def native(text: str, ids: list[int], finish: Json | None = None, id: str = "one") -> Json:
    meta = {"id": id, "completion_tokens": len(ids), "finish_reason": finish}
    return {"text": text, "output_ids": ids, "meta_info": meta}


def test_native_events_that_say_no_more_are_left_out() -> None:
    had = [native("a", [1]), native("ab", [1, 2])]
    stop = {"type": "stop", "matched": "c"}
    again = [
        native("a", [1], id="two"), native("abc", [1, 2, 3], id="two"),
        native("ab", [1, 2, 3], stop, id="two"),
    ]  # fmt: skip
    assert rest(had, again, Endpoint.GENERATE) == [
        native("abc", [1, 2, 3]), native("ab", [1, 2, 3], stop),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("endpoint", "had", "again"),
    [
        (Endpoint.CHAT, chunk({"content": "a b"}), chunk({"content": "a c"})),
        (Endpoint.COMPLETIONS, chunk(text="a b"), chunk(text="b")),
        (Endpoint.GENERATE, native("a b", [1, 2]), native("a c d", [1, 2, 3])),
    ],
)
def test_a_worker_that_says_something_else_ends_the_stream(
    endpoint: Endpoint, had: Json, again: Json
) -> None:
    with pytest.raises(EngineError, match="does not continue"):
        rest([had], [again], endpoint)


def test_a_stream_may_go_on_more_than_once() -> None:
    delivered = Delivered(Endpoint.CHAT)
    parts = [sse.event(chunk({"content": text})) for text in "abcd"]
    assert delivered.take(parts[:1]) == parts[:1]
    for number in (2, 3, 4):
        delivered.continues()
        assert delivered.take(parts[:number]) == parts[number - 1 : number]


def test_a_long_stream_is_read_on_the_way() -> None:
    delivered = Delivered(Endpoint.CHAT)
    parts = [sse.event(chunk({"content": f"{number},"})) for number in range(1000)]
    for part in parts[:900]:
        delivered.take([part])
    assert len(delivered._unread) < 300
    delivered.continues()
    assert delivered.take(parts) == parts[900:]


def test_ids_travel_in_comments_and_parameters() -> None:
    event = sse.event({"text": ":ids 3\n"})
    assert split(comment([17, 4]) + event) == ([17, 4], event)
    assert split(event) == ([], event)
    assert split(b":ids x\n" + event) == ([], b":ids x\n" + event)
    body = {"prompt": "x", "custom_params": {"a": 1}}
    assert resumed(Endpoint.CHAT, body, []) is body
    assert resumed(Endpoint.CHAT, body, [5])["custom_params"] == {"a": 1, PARAM: [5]}
    params = resumed(Endpoint.GENERATE, {"sampling_params": {"n": 1}}, [5])["sampling_params"]
    assert params == {"n": 1, "custom_params": {PARAM: [5]}}
