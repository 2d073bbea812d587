"""What the OpenAI SDK of today gets from the demo, as JSON by the way it was asked for."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any, Literal

import openai
from pydantic import BaseModel

URL, PROMPT = sys.argv[1:]
CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": PROMPT}],
    "temperature": 0,
    "max_tokens": 8,
}
RESPONSE: dict[str, Any] = {"input": PROMPT, "temperature": 0, "max_output_tokens": 8}
FORECAST = {
    "type": "function",
    "name": "get_weather_forecast",
    "description": "Get the weather forecast of a city for a number of days.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    },
}


class Verdict(BaseModel):
    right: Literal["yes", "no"]


def refused(call: Callable[[], Any]) -> list[Any]:
    try:
        call()
    except openai.APIStatusError as error:
        return [type(error).__name__, error.status_code, error.code, error.param]
    return []


def sync(client: Any) -> dict[str, Any]:
    whole = client.chat.completions.create(model="code", **CHAT)
    # The SDK's helpers for streams take an answer that was cut off for a failure.
    with client.chat.completions.stream(
        model="code", stream_options={"include_usage": True}, **{**CHAT, "max_tokens": 64}
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        streamed = stream.get_final_completion()
    parsed = client.chat.completions.parse(
        model="base", response_format=Verdict, **{**CHAT, "max_tokens": 32}
    )
    response = client.responses.create(model="code", **RESPONSE)
    with client.responses.stream(model="code", **{**RESPONSE, "max_output_tokens": 64}) as events:
        kinds = [event.type for event in events]
        final = events.get_final_response()
    verdict = client.responses.parse(
        model="base", text_format=Verdict, **{**RESPONSE, "max_output_tokens": 32}
    )
    call = client.responses.create(
        model="tools",
        input="What will the weather be in Lisbon for the next 5 days?",
        tools=[FORECAST],
        temperature=0,
        max_output_tokens=48,
    )
    return {
        "chat": [whole.model, whole.choices[0].message.content, whole.usage.to_dict()],
        "stream": ["".join(deltas), streamed.choices[0].finish_reason, streamed.usage.to_dict()],
        "parse": parsed.choices[0].message.parsed.right,
        "response": [response.model, response.output_text, response.usage.to_dict()],
        "response stream": [final.output_text, kinds[0], kinds[-1]],
        "response parse": verdict.output_parsed.right,
        "response calls": [[item.name, json.loads(item.arguments)] for item in call.output],
        "unknown model": refused(lambda: client.chat.completions.create(model="z", **CHAT)),
        "wrong value": refused(
            lambda: client.chat.completions.create(model="code", **{**CHAT, "temperature": -1})
        ),
        "wrong response": refused(
            lambda: client.responses.create(model="code", **RESPONSE, truncation="auto")
        ),
    }


async def at_once() -> list[str]:
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0) as client:
        answers = await asyncio.gather(
            *(
                client.chat.completions.create(model=model, **CHAT)
                for model in ("code", "tools", "math")
            )
        )
    return [answer.choices[0].message.content for answer in answers]


with openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0) as client:
    print(json.dumps({**sync(client), "async": asyncio.run(at_once())}))
