"""Asks pydantic-ai's agent once whole and once streamed; prints both texts as JSON."""

from __future__ import annotations

import asyncio
import json
import sys

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

URL, MODEL, PROMPT = sys.argv[1:]


async def main() -> None:
    provider = OpenAIProvider(base_url=f"{URL}/v1", api_key="none")
    agent = Agent(OpenAIChatModel(MODEL, provider=provider))
    settings = {"temperature": 0.0, "max_tokens": 8}
    whole = await agent.run(PROMPT, model_settings=settings)
    async with agent.run_stream(PROMPT, model_settings=settings) as stream:
        streamed = await stream.get_output()
    print(
        json.dumps({"texts": [whole.output, streamed], "output_tokens": whole.usage.output_tokens})
    )


asyncio.run(main())
