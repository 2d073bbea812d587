"""Every kind of answer, checked as strictly as the OpenAI SDK's types allow.

Prints one line an answer that does not conform.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from typing import Any

from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.shared import ErrorObject
from pydantic import BaseModel, ValidationError

URL = sys.argv[1]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "Hello there"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    CHAT: [
        {},
        {"logprobs": True},
        {"logprobs": True, "top_logprobs": 2},
        {"n": 2},
        {"stop": "a"},
        {"tools": [TOOL], "tool_choice": "none"},
        {"response_format": {"type": "json_object"}},
        {"stream_options": {"include_usage": True}},
    ],
    COMPLETIONS: [
        {},
        {"logprobs": 0},
        {"logprobs": 2},
        {"n": 2},
        {"prompt": ["Hello", "there"]},
        {"echo": True},
        {"stream_options": {"include_usage": True}},
    ],
}


def send(path: str, body: dict[str, Any] | None = None) -> str:
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(URL + path, content, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            text: bytes = response.read()
    except urllib.error.HTTPError as error:
        text = error.read()
    return text.decode()


def check(kind: type[BaseModel], content: Any, what: object) -> None:
    try:
        kind.model_validate_json(json.dumps(content), strict=True)
        assert content.get("metadata") is None
    except (ValidationError, AssertionError) as error:
        print(what, "is no", kind.__name__, repr(str(error)), json.dumps(content))


def check_stream(kind: type[BaseModel], body: dict[str, Any], path: str) -> None:
    events = [event.removeprefix("data: ") for event in send(path, body).split("\n\n") if event]
    if events[-1] != "[DONE]":
        print(body, "has no [DONE]", events[-1:])
    for event in events[:-1]:
        chunk = json.loads(event)
        if kind is Completion:
            # OpenAI's own chunks have null here, which the type of a whole answer does not know.
            for choice in chunk["choices"]:
                choice["finish_reason"] = choice["finish_reason"] or "stop"
        check(kind, chunk, (path, body, "stream"))


def main() -> None:
    for path, whole, chunk in (
        (CHAT, ChatCompletion, ChatCompletionChunk),
        (COMPLETIONS, Completion, Completion),
    ):
        prompt = {"messages": MESSAGES} if path == CHAT else {"prompt": "Hello there"}
        for options in OPTIONS[path]:
            body = {"model": "a", "max_tokens": 4, "temperature": 0, **prompt, **options}
            if "stream_options" not in options:
                check(whole, json.loads(send(path, body)), (path, options))
            check_stream(chunk, {**body, "stream": True}, path)
        for wrong in ({"temperature": "hot"}, {"model": "z"}, {"max_tokens": -1}, {"n": 0}):
            answer = json.loads(send(path, {"model": "a", **prompt, **wrong}))
            check(ErrorObject, answer["error"], (path, wrong))
    listed = json.loads(send("/v1/models"))["data"]
    for card in [*listed, json.loads(send("/v1/models/a"))]:
        check(Model, card, "models")
    print("checked")


main()
