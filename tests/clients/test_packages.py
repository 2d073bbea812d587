"""The packages that people build agents with, as they are installed, on the demo."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import anthropic
import pytest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

PROMPT = "Write a Python function `f(xs)` that returns the sum of `xs`."
QUESTION = "What will the weather be in Lisbon for the next 5 days?"
LISBON = {"city": "Lisbon", "days": 5}
CALL = ["get_weather_forecast", LISBON]
SUN = "5 days of sun in Lisbon"
NOT_FOUND = ["NotFoundError", 404, "model_not_found", "model"]

Call = Callable[..., str]
Plain = Callable[..., Any]


def text(answer: Any) -> str:
    content: str = answer["choices"][0]["message"]["content"]
    return content


@pytest.fixture
def openai_said(demo: str, call: Call) -> Any:
    return json.loads(call("openai_sdk.py", demo, PROMPT))


def test_decoders_differ(plain: Plain) -> None:
    """Else the tests below could not tell who answered."""
    assert len({text(plain(decoder, PROMPT)) for decoder in ("code", "tools", "math")}) == 3


def test_openai_chats(openai_said: Any, plain: Plain) -> None:
    model, said, usage = openai_said["chat"]
    assert (model, said) == ("code", text(plain("code", PROMPT)))
    assert usage["prompt_tokens"] == plain("code", PROMPT)["usage"]["prompt_tokens"]
    said, finish, usage = openai_said["stream"]
    written = plain("code", PROMPT, 64)
    assert (said, finish) == (text(written), "stop")
    assert usage["completion_tokens"] == written["usage"]["completion_tokens"]
    assert openai_said["async"] == [
        text(plain(decoder, PROMPT)) for decoder in ("code", "tools", "math")
    ]


def test_openai_responds(openai_said: Any, plain: Plain) -> None:
    model, said, usage = openai_said["response"]
    assert (model, said) == ("code", text(plain("code", PROMPT)))
    assert usage["output_tokens"] == 8
    assert openai_said["response stream"] == [
        text(plain("code", PROMPT, 64)),
        "response.created",
        "response.completed",
    ]
    assert openai_said["response calls"] == [CALL]


def test_openai_parses(openai_said: Any) -> None:
    assert openai_said["parse"] in ("yes", "no")
    assert openai_said["response parse"] == openai_said["parse"]


def test_openai_raises_its_own_errors(openai_said: Any) -> None:
    assert openai_said["unknown model"] == NOT_FOUND
    for wrong, field in (("wrong value", "temperature"), ("wrong response", "truncation")):
        kind, status, _, param = openai_said[wrong]
        assert (kind, status, param) == ("BadRequestError", 400, field)


def test_anthropic(demo: str, plain: Plain) -> None:
    user: list[anthropic.types.MessageParam] = [{"role": "user", "content": PROMPT}]
    asked: Any = {"messages": user, "max_tokens": 8, "extra_body": {"temperature": 0}}
    with anthropic.Anthropic(base_url=demo, api_key="none", max_retries=0) as client:
        message = client.messages.create(model="code", **asked)
        (block,) = message.content
        assert isinstance(block, anthropic.types.TextBlock)
        assert block.text == text(plain("code", PROMPT))
        with client.messages.stream(model="math", **asked) as stream:
            assert "".join(stream.text_stream) == text(plain("math", PROMPT))
            assert stream.get_final_message().stop_reason == "max_tokens"
        counted = client.messages.count_tokens(model="math", messages=user)
        assert counted.input_tokens == plain("math", PROMPT)["usage"]["prompt_tokens"]
        tool: anthropic.types.ToolParam = {
            "name": "get_weather_forecast",
            "description": "Get the weather forecast of a city for a number of days.",
            "input_schema": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city", "days"],
            },
        }
        with client.messages.stream(
            model="tools",
            max_tokens=64,
            messages=[{"role": "user", "content": QUESTION}],
            tools=[tool],
            extra_body={"temperature": 0},
        ) as stream:
            called = stream.get_final_message()
        (use,) = called.content
        assert isinstance(use, anthropic.types.ToolUseBlock)
        assert ([use.name, use.input], called.stop_reason) == (CALL, "tool_use")
        with pytest.raises(anthropic.NotFoundError, match="served models"):
            client.messages.create(model="z", **asked)
        with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
            client.messages.create(model="code", **{**asked, "max_tokens": 0})


def test_openai_agents(demo: str, call: Call, plain: Plain) -> None:
    said = json.loads(call("openai_agents_sdk.py", demo, PROMPT, QUESTION))
    written = text(plain("code", PROMPT, 64))
    assert said["chat"] == said["responses"] == [written, written, SUN]
    assert said["unknown model"] == "model_not_found"


def test_langgraph(demo: str, call: Call) -> None:
    said = json.loads(call("langgraph_agents.py", demo, QUESTION))
    assert (said["call"], said["result"]) == (CALL, SUN)
    assert said["answer"]
    assert "".join(said["pieces"]) == said["answer"]
    assert len(said["pieces"]) > 1
    assert 0 < said["cached"] < said["prompt tokens"], "the caller had brought its prompt in"
    assert said["unknown model"] == "model_not_found"


def test_pydantic_ai(demo: str, call: Call) -> None:
    said = json.loads(call("pydantic_tools.py", demo, QUESTION))
    assert (said["whole"], said["streamed"]) == (SUN, SUN)
    assert said["unknown model"] == [404, "model_not_found"]


def test_litellm(demo: str, call: Call, plain: Plain) -> None:
    said = json.loads(call("litellm_sdk.py", demo, PROMPT))
    prompt_tokens = plain("code", PROMPT)["usage"]["prompt_tokens"]
    assert said["whole"] == [text(plain("code", PROMPT)), prompt_tokens]
    assert (said["stream"], said["finish"]) == (text(plain("math", PROMPT)), "length")
    assert said["async"] == text(plain("tools", PROMPT))
    assert said["unknown model"] == ["NotFoundError", 404]
    assert said["wrong value"] == ["BadRequestError", 400]
    assert said["too long"] == ["ContextWindowExceededError", 400]
