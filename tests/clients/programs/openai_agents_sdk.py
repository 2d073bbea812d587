"""Two agents on two decoders, whole and streamed, by either API; as JSON.

The package takes an answer that was cut off for a failure, so there is room for whole ones.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import agents
import openai

URL, PROMPT, QUESTION = sys.argv[1:]
SETTINGS = agents.ModelSettings(temperature=0, max_tokens=64)


@agents.function_tool
def get_weather_forecast(city: str, days: int) -> str:
    """Get the weather forecast of a city for a number of days.

    Args:
        city: The name of the city.
        days: The number of days.
    """
    return f"{days} days of sun in {city}"


async def main() -> dict[str, Any]:
    agents.set_tracing_disabled(True)
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0) as client:

        def agent(decoder: str, kind: Any, **options: Any) -> agents.Agent:
            model = kind(decoder, client)
            return agents.Agent(name=decoder, model=model, model_settings=SETTINGS, **options)

        said: dict[str, Any] = {}
        for name, kind in (
            ("chat", agents.OpenAIChatCompletionsModel),
            ("responses", agents.OpenAIResponsesModel),
        ):
            first = await agents.Runner.run(agent("code", kind), PROMPT)
            stream = agents.Runner.run_streamed(agent("code", kind), PROMPT)
            async for _ in stream.stream_events():
                pass
            caller = agent(
                "tools",
                kind,
                tools=[get_weather_forecast],
                tool_use_behavior="stop_on_first_tool",
            )
            called = await agents.Runner.run(caller, QUESTION)
            said[name] = [first.final_output, stream.final_output, called.final_output]
        try:
            await agents.Runner.run(agent("z", agents.OpenAIChatCompletionsModel), PROMPT)
        except openai.NotFoundError as error:
            said["unknown model"] = error.code
    return said


print(json.dumps(asyncio.run(main())))
