"""Clients call functions on the demo: its template and parser are found without a flag."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import agents
import openai
import pytest
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from benchmarks.worker_keys import let_in
from ps_sglang.demo import QUESTIONS, TOOLS
from ps_sglang.launch import Cluster, ClusterSpec
from tests.support.engine_client import RefusedError, assert_conserved, assert_known, post

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

QUESTION = QUESTIONS["tools"]
TWO = "How will the weather be in Lisbon for 5 days, and in Oslo for 2 days?"
LISBON = {"city": "Lisbon", "days": 5}
Messages = list[dict[str, Any]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    spec = ClusterSpec("base", ("tools",), port=0, log_dir=tmp_path_factory.mktemp("logs"))
    with Cluster.start(spec) as cluster:
        let_in(cluster)
        yield cluster
        assert_conserved(cluster)


@pytest.fixture
def client(cluster: Cluster) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, question: str = QUESTION, **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": question}]
    fields: Any = {"tools": TOOLS, "max_tokens": 96, "temperature": 0, **options}
    return client.chat.completions.create(model="tools", messages=messages, **fields)


def calls(message: Any) -> list[tuple[str, dict[str, Any]]]:
    return [
        (call.function.name, json.loads(call.function.arguments))
        for call in message.tool_calls or ()
    ]


def test_openai(client: openai.OpenAI) -> None:
    (choice,) = ask(client).choices
    assert calls(choice.message) == [("get_weather_forecast", LISBON)]
    assert not choice.message.content
    assert choice.finish_reason == "tool_calls"


def test_openai_streamed(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": QUESTION}]
    with client.chat.completions.stream(
        model="tools", messages=messages, tools=TOOLS, max_tokens=96, temperature=0
    ) as stream:
        events = list(stream)
        (choice,) = stream.get_final_completion().choices
    deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert len(deltas) > 1
    assert calls(choice.message) == [("get_weather_forecast", LISBON)]
    assert not choice.message.content
    assert choice.finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_several_calls_in_one_answer(client: openai.OpenAI, stream: bool) -> None:
    if stream:
        parts: dict[int, list[str]] = {}
        for chunk in ask(client, TWO, stream=True):
            for call in chunk.choices[0].delta.tool_calls or () if chunk.choices else ():
                name, arguments = parts.setdefault(call.index, ["", ""])
                parts[call.index] = [
                    name + (call.function.name or ""),
                    arguments + (call.function.arguments or ""),
                ]
        streamed = [(name, json.loads(arguments)) for name, arguments in parts.values()]
    else:
        streamed = calls(ask(client, TWO).choices[0].message)
    assert streamed[0] == ("get_weather_forecast", LISBON)
    assert [name for name, _ in streamed] == ["get_weather_forecast"] * 2


def test_a_choice_of_none_shows_no_tools(cluster: Cluster, client: openai.OpenAI) -> None:
    answer = ask(client, tool_choice="none")
    assert not answer.choices[0].message.tool_calls
    assert answer.usage.prompt_tokens == ask(client, tools=openai.omit).usage.prompt_tokens


@pytest.mark.parametrize("question", [QUESTION, "Hello!"])
def test_a_call_can_be_required(client: openai.OpenAI, question: str) -> None:
    called = calls(ask(client, question, tool_choice="required").choices[0].message)
    assert called
    assert {name for name, _ in called} <= {tool["function"]["name"] for tool in TOOLS}


def test_a_named_function_is_called(client: openai.OpenAI) -> None:
    named = {"type": "function", "function": {"name": "convert_currency"}}
    called = calls(ask(client, tool_choice=named).choices[0].message)
    assert {name for name, _ in called} == {"convert_currency"}


def test_a_strict_function_gets_arguments_of_its_schema(client: openai.OpenAI) -> None:
    """A schema that this answer would otherwise break: days are a number to the decoder."""
    text = {"type": "string", "enum": ["two", "five"]}
    parameters = {"type": "object", "properties": {"days": text}, "required": ["days"]}
    strict = {"name": "get_weather_forecast", "strict": True}
    strict["parameters"] = parameters | {"additionalProperties": False}
    answer = ask(client, tools=[{"type": "function", "function": strict}])
    ((_, arguments),) = calls(answer.choices[0].message)
    assert arguments["days"] in ("two", "five")
    assert arguments.keys() == {"days"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tools": [], "tool_choice": "required"}, "ools cannot be empty"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "'f' not found"),
        ({"tools": [{"type": "function", "function": {"parameters": {}}}]}, "tools"),
    ],
)
def test_what_cannot_be_called_is_refused(
    cluster: Cluster, options: dict[str, Any], reason: str
) -> None:
    body = {"model": "tools", "messages": [{"role": "user", "content": "x"}], "tools": TOOLS}
    with pytest.raises(RefusedError, match=reason) as caught:
        post(f"{cluster.url}/v1/chat/completions", body | options)
    assert caught.value.status == 400


CALL = {
    "id": "1",
    "type": "function",
    "function": {"name": "get_weather_forecast", "arguments": '{"city": "Lisbon", "days": 5}'},
}
CHATS: dict[str, Messages] = {
    "question": [{"role": "user", "content": QUESTION}],
    "system": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Wie wird das Wetter in Köln? \U0001f327"},
    ],
    "result": [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
        {"role": "assistant", "content": "It will be sunny.", "tool_calls": []},
        {"role": "user", "content": "And in Oslo?"},
    ],
}


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("choice", ["auto", "none", "required"])
def test_the_gateway_knows_the_prompt(cluster: Cluster, name: str, choice: str) -> None:
    body = {"model": "tools", "messages": CHATS[name], "tools": TOOLS, "tool_choice": choice}
    salt = f"{name} {choice}"
    request = {**body, "max_tokens": 4, "temperature": 0, "cache_salt": salt}
    usage = post(f"{cluster.url}/v1/chat/completions", request)["usage"]
    assert_known(cluster, request, usage["prompt_tokens"])


@agents.function_tool
def get_forecast(city: str, days: int) -> str:
    """Get the weather forecast of a city for a number of days.

    Args:
        city: The name of the city.
        days: The number of days.
    """
    return f"{days} days of sun in {city}"


@pytest.mark.parametrize("streamed", [False, True])
def test_openai_agents(cluster: Cluster, streamed: bool) -> None:
    """The decoder is not trained to read results, so the first one is the agent's answer."""
    agents.set_tracing_disabled(True)

    async def run() -> Any:
        client = openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0)
        async with client:
            agent = agents.Agent(
                name="forecaster",
                model=agents.OpenAIChatCompletionsModel("tools", client),
                model_settings=agents.ModelSettings(temperature=0, max_tokens=96),
                tools=[get_forecast],
                tool_use_behavior="stop_on_first_tool",
            )
            if not streamed:
                return await agents.Runner.run(agent, QUESTION)
            result = agents.Runner.run_streamed(agent, QUESTION)
            async for _ in result.stream_events():
                pass
            return result

    assert asyncio.run(run()).final_output == "5 days of sun in Lisbon"


@tool
def convert_currency(amount: float, from_currency: str, to_currency: str) -> str:
    """Convert an amount of money from one currency to another."""
    return f"{amount:g} {from_currency} in {to_currency}"


@pytest.mark.parametrize("streamed", [False, True])
def test_langchain(cluster: Cluster, streamed: bool) -> None:
    model = ChatOpenAI(
        base_url=f"{cluster.url}/v1",
        api_key=SecretStr("none"),
        model="tools",
        temperature=0,
        max_retries=0,
    ).bind_tools([convert_currency])
    question = "Convert 150 US dollars to euros."
    answer: Any = None
    if streamed:
        for chunk in model.stream(question):
            answer = chunk if answer is None else answer + chunk
    else:
        answer = model.invoke(question)
    (call,) = answer.tool_calls
    assert convert_currency.invoke(call["args"]) == "150 USD in EUR"
