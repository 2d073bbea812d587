"""Anthropic's and OpenAI's newer APIs and SGLang's small routes, on a cluster of tiny models."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import anthropic
import openai
import pytest

from tests.clients.test_clients import post

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

USER: list[anthropic.types.MessageParam] = [{"role": "user", "content": "Tell me a story."}]
Claude = Callable[[str], anthropic.Anthropic]
Gpt = Callable[[str], openai.OpenAI]
GREEDY = {"temperature": 0}
CHAT = {"model": "a", "temperature": 0, "max_tokens": 8, "messages": USER}


@pytest.fixture
def claude() -> Iterator[Claude]:
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(anthropic.Anthropic(base_url=url, api_key="none"))


@pytest.fixture
def gpt() -> Iterator[Gpt]:
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(openai.OpenAI(base_url=f"{url}/v1", api_key="none"))


def get(url: str, path: str) -> tuple[int, Any]:
    with urllib.request.urlopen(url + path, timeout=60) as response:
        content = response.read()
    return response.status, json.loads(content or b"null")


def test_a_message_says_what_the_chat_says_whole_and_streamed(url: str, claude: Claude) -> None:
    _, chat = post(url, "/v1/chat/completions", CHAT)
    text = chat["choices"][0]["message"]["content"]
    client = claude(url)
    whole = client.messages.create(model="a", max_tokens=8, messages=USER, extra_body=GREEDY)
    (block,) = whole.content
    assert isinstance(block, anthropic.types.TextBlock)
    assert block.text == text
    usage = whole.usage
    cached = usage.cache_read_input_tokens or 0
    assert usage.input_tokens + cached == chat["usage"]["prompt_tokens"]
    assert usage.output_tokens == chat["usage"]["completion_tokens"]
    assert cached > 0, "the chat had brought the prompt in"
    with client.messages.stream(
        model="a", max_tokens=8, messages=USER, extra_body=GREEDY
    ) as stream:
        first = next(iter(stream))
        assert first.type == "message_start"
        final = stream.get_final_message()
        assert stream.get_final_text() == text
    begun = first.message.usage
    assert begun.input_tokens + (begun.cache_read_input_tokens or 0) == usage.input_tokens + cached
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", usage.output_tokens)
    counted = client.messages.count_tokens(model="a", messages=USER)
    assert counted.input_tokens == usage.input_tokens + cached


def test_the_billing_line_does_not_end_the_shared_prefix(url: str, claude: Claude) -> None:
    client = claude(url)
    cached = []
    for number in range(2):
        line = f"x-anthropic-billing-header: cc_version=2.1; cch={number}aaa9;"
        system: list[anthropic.types.TextBlockParam] = [
            {"type": "text", "text": line},
            {"type": "text", "text": "You are a careful agent. " * 20},
        ]
        answer = client.messages.create(
            model="a", max_tokens=2, system=system, messages=USER, extra_body=GREEDY
        )
        cached.append(answer.usage.cache_read_input_tokens or 0)
    assert cached[1] > 100 > cached[0]


def test_a_stop_sequence_is_named(url: str) -> None:
    _, chat = post(url, "/v1/chat/completions", CHAT)
    text = chat["choices"][0]["message"]["content"]
    stop = text[2:4]
    body = {**CHAT, "stop_sequences": [stop]}
    _, answer = post(url, "/v1/messages", body)
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", stop)
    assert answer["content"][0]["text"] == text[: text.index(stop)]


def test_a_response_is_streamed_and_continued(url: str, gpt: Gpt) -> None:
    client = gpt(url)
    asked: dict[str, Any] = {"model": "a", "temperature": 0, "max_output_tokens": 8}
    first = client.responses.create(input="Tell me a story.", **asked)
    _, chat = post(url, "/v1/chat/completions", CHAT)
    assert first.output_text == chat["choices"][0]["message"]["content"]
    stream = client.responses.create(
        input="And then?", previous_response_id=first.id, stream=True, **asked
    )
    events = list(stream)
    text = "".join(one.delta for one in events if one.type == "response.output_text.delta")
    last = events[-1]
    assert last.type == "response.incomplete", "the answer was cut off at its length"
    second = last.response
    assert second.output_text == text
    talk = [
        *USER,
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And then?"},
    ]
    _, chat = post(url, "/v1/chat/completions", {**CHAT, "messages": talk})
    assert text == chat["choices"][0]["message"]["content"]
    assert second.usage is not None
    assert second.usage.input_tokens == chat["usage"]["prompt_tokens"]


def test_tokens_go_there_and_back(url: str) -> None:
    status, answer = post(url, "/tokenize", {"prompt": "Hello there"})
    assert (status, answer["count"]) == (200, len(answer["tokens"]))
    _, back = post(url, "/v1/detokenize", {"tokens": answer["tokens"]})
    assert back == {"text": "Hello there"}
    _, batch = post(url, "/v1/tokenize", {"prompt": ["Hello there", "x"]})
    assert batch["tokens"][0] == answer["tokens"]
    status, answer = post(url, "/tokenize", {"messages": USER, "model": "z"})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


def test_parsers_answer_as_sglangs_server_does(url: str) -> None:
    text = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    sent = {"text": text, "tools": tools, "tool_call_parser": "qwen25"}
    status, answer = post(url, "/parse_function_call", sent)
    assert status == 200
    (call,) = answer["calls"]
    assert (call["name"], json.loads(call["parameters"])) == ("f", {"x": 1})
    asked = {"text": "<think>why</think>so", "reasoning_parser": "qwen3"}
    status, answer = post(url, "/separate_reasoning", asked)
    assert (status, answer) == (200, {"reasoning_text": "why", "text": "so"})


def test_loads_health_and_readiness(url: str) -> None:
    status, answer = get(url, "/v1/loads")
    assert status == 200
    assert {load["role"] for load in answer["loads"]} == {"prefill", "decode"}
    assert all("num_running_reqs" in load for load in answer["loads"])
    assert get(url, "/readiness")[0] == 200
    assert get(url, "/liveness")[0] == 200
    assert get(url, "/health_generate")[0] == 200


def test_an_abort_by_the_clients_id_ends_the_request(url: str) -> None:
    body = {"model": "a", "text": "x", "rid": "mine", "stream": True}
    body["sampling_params"] = {"max_new_tokens": 1500, "ignore_eos": True}
    request = urllib.request.Request(
        url + "/generate", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        response.readline()
        abort = urllib.request.Request(
            url + "/abort_request", b'{"rid": "mine"}', {"content-type": "application/json"}
        )
        done = threading.Thread(target=lambda: urllib.request.urlopen(abort).close())
        done.start()
        last = response.read().strip().splitlines()[-1]
        done.join()
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "request_aborted"
