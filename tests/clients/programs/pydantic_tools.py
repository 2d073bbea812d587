"""pydantic-ai's agent ends with a function's result, whole and streamed; as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from pydantic_ai import Agent, ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

URL, QUESTION = sys.argv[1:]


def get_weather_forecast(city: str, days: int) -> str:
    """Get the weather forecast of a city for a number of days."""
    return f"{days} days of sun in {city}"


async def main() -> dict[str, Any]:
    provider = OpenAIProvider(base_url=f"{URL}/v1", api_key="none")
    settings: Any = {"temperature": 0.0, "max_tokens": 64}
    agent = Agent(OpenAIChatModel("tools", provider=provider), output_type=get_weather_forecast)
    whole = await agent.run(QUESTION, model_settings=settings)
    async with agent.run_stream(QUESTION, model_settings=settings) as stream:
        streamed = await stream.get_output()
    refused: list[Any] = []
    try:
        await Agent(OpenAIChatModel("z", provider=provider)).run(QUESTION)
    except ModelHTTPError as error:
        refused = [error.status_code, error.body["code"]]
    return {"whole": whole.output, "streamed": streamed, "unknown model": refused}


print(json.dumps(asyncio.run(main())))
