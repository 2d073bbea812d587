"""The real packages of OpenAI and Anthropic in front of the gateway."""

from __future__ import annotations

import anthropic
import openai
import pytest
from openai.types import responses
from pydantic import BaseModel

from tests.gateway.gateway_setup import Setup
from tests.gateway.test_gateway_messages import SPEECH, TOOL

USER: list[anthropic.types.MessageParam] = [{"role": "user", "content": "hi there"}]


def claude(gateway: Setup, path: str = "") -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=gateway.url + path, api_key="none", max_retries=0)


def gpt(gateway: Setup) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key="none", max_retries=0)


async def test_anthropic_creates_streams_and_counts(gateway: Setup) -> None:
    async with claude(gateway) as client:
        message = await client.messages.create(model="a", max_tokens=3, messages=USER)
        (block,) = message.content
        assert isinstance(block, anthropic.types.TextBlock)
        assert block.text == "a-x-0 a-x-1 a-x-2 "
        assert message.usage.cache_read_input_tokens == 1
        async with client.messages.stream(model="b", max_tokens=2, messages=USER) as stream:
            assert "".join([text async for text in stream.text_stream]) == "b-x-0 b-x-1 "
            final = await stream.get_final_message()
        assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 2)
        counted = await client.messages.count_tokens(model="a", messages=USER)
        assert counted.input_tokens == 2


@pytest.mark.parametrize("streamed", [False, True])
async def test_anthropic_reads_thoughts_and_calls(gateway: Setup, streamed: bool) -> None:
    plan = gateway.decode().plan
    plan.deltas, plan.finish = SPEECH, {"finish_reason": "tool_calls"}
    tool = anthropic.types.ToolParam(name=TOOL["name"], input_schema=TOOL["input_schema"])
    message: anthropic.types.Message
    async with claude(gateway, "/models/a") as client:
        if streamed:
            async with client.messages.stream(
                model="claude", max_tokens=9, messages=USER, tools=[tool]
            ) as stream:
                message = await stream.get_final_message()
        else:
            message = await client.messages.create(
                model="claude", max_tokens=9, messages=USER, tools=[tool]
            )
    thought, text, call, other = message.content
    assert isinstance(thought, anthropic.types.ThinkingBlock)
    assert isinstance(text, anthropic.types.TextBlock)
    assert isinstance(call, anthropic.types.ToolUseBlock)
    assert isinstance(other, anthropic.types.ToolUseBlock)
    assert (thought.thinking, text.text) == ("I must ask.", "Let me see.")
    assert (call.name, call.input, other.input) == ("weather", {"city": "Rome"}, {})
    assert message.stop_reason == "tool_use"


async def test_anthropic_raises_its_own_errors(gateway: Setup) -> None:
    async with claude(gateway) as client:
        with pytest.raises(anthropic.NotFoundError, match="served models: a, b"):
            await client.messages.create(model="z", max_tokens=3, messages=USER)
        with pytest.raises(anthropic.BadRequestError, match="`max_tokens` must be"):
            await client.messages.create(model="a", max_tokens=0, messages=USER)
        gateway.decode().plan.die_after = 1
        with pytest.raises(anthropic.APIStatusError, match="decode worker 'a-0'"):
            async with client.messages.stream(model="a", max_tokens=3, messages=USER) as stream:
                await stream.get_final_message()


class City(BaseModel):
    name: str


async def test_openai_creates_parses_and_continues_responses(gateway: Setup) -> None:
    async with gpt(gateway) as client:
        first = await client.responses.create(model="a", input="hi", max_output_tokens=2)
        assert first.output_text == "a-x-0 a-x-1 "
        assert first.usage is not None
        assert first.usage.input_tokens_details.cached_tokens == 1
        assert (await client.responses.retrieve(first.id)).output_text == first.output_text
        gateway.decode().plan.deltas = [{"content": '{"name": '}, {"content": '"Rome"}'}]
        second = await client.responses.parse(
            model="a", input="where?", text_format=City, previous_response_id=first.id
        )
        assert second.output_parsed == City(name="Rome")
        assert (await client.responses.cancel(second.id)).status == "completed"
        await client.responses.delete(second.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(second.id)
    sent = gateway.decode().requests[-1]
    assert [one["content"] for one in sent["messages"]] == ["hi", "a-x-0 a-x-1 ", "where?"]
    assert sent["response_format"]["json_schema"]["name"] == "City"


async def test_openai_streams_responses(gateway: Setup) -> None:
    plan = gateway.decode().plan
    plan.deltas, plan.finish = SPEECH, {"finish_reason": "tool_calls"}
    tool: responses.FunctionToolParam = {
        "type": "function",
        "name": "weather",
        "parameters": {"type": "object"},
        "strict": True,
    }
    async with (
        gpt(gateway) as client,
        client.responses.stream(model="a", input="hi", tools=[tool]) as stream,
    ):
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert final.output_text == "Let me see."
    calls = [item for item in final.output if item.type == "function_call"]
    assert [call.arguments for call in calls] == ['{"city": "Rome"}', "{}"]


async def test_every_event_has_the_sdks_types(gateway: Setup) -> None:
    """The SDK itself takes what it is given."""
    from pydantic import TypeAdapter

    plan = gateway.decode().plan
    plan.deltas, plan.finish = SPEECH, {"finish_reason": "tool_calls"}
    adapter: TypeAdapter[object] = TypeAdapter(responses.ResponseStreamEvent)
    sent = {"model": "a", "input": "hi", "stream": True}
    async with gateway.http.post(gateway.url + "/v1/responses", json=sent) as response:
        for line in (await response.text()).splitlines():
            if line.startswith("data: "):
                adapter.validate_json(line.removeprefix("data: "))
    sent = {"model": "a", "messages": USER, "max_tokens": 3, "stream": True}
    raw: TypeAdapter[object] = TypeAdapter(anthropic.types.RawMessageStreamEvent)
    async with gateway.http.post(gateway.url + "/v1/messages", json=sent) as response:
        for line in (await response.text()).splitlines():
            if line.startswith("data: "):
                raw.validate_json(line.removeprefix("data: "))
