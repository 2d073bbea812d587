"""ReAct with the OpenAI client: one decoder thinks and answers, another one calls the tools.

    make demo                        # or your own cluster, with --planner and --actor
    python examples/react_openai.py

The conversation grows by each thought, call and observation. Both decoders read all of it, and
the base computes each part of it once.
"""

from __future__ import annotations

import json
from typing import Any

import openai
import sharing

QUESTION = "What will the weather be in Lisbon for the next 5 days?"
STEPS = 2


def get_weather_forecast(city: str, days: int) -> str:
    return f"{city}: " + ", ".join(f"{20 + day % 3} degrees" for day in range(days))


TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather_forecast",
            "description": "Get the weather forecast of a city for a number of days.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "The name of the city."},
                    "days": {"type": "integer", "description": "The number of days."},
                },
                "required": ["city", "days"],
            },
        },
    }
]


def react(client: openai.OpenAI, planner: str, actor: str) -> list[sharing.Turn]:
    """Thought, action and observation, STEPS times; then the answer."""
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    turns = []

    def say(decoder: str, what: str, **options: Any) -> Any:
        answer = client.chat.completions.create(
            model=decoder,
            messages=messages,
            tools=TOOLS,  # for both decoders: they are a part of the prompt
            temperature=0,
            max_tokens=48,
            extra_body={"return_cached_tokens_details": True},
            **options,
        )
        turns.append(sharing.openai_turn(what, answer))
        messages.append(answer.choices[0].message)
        return answer.choices[0].message

    for step in range(1, STEPS + 1):
        messages.append({"role": "user", "content": "Think: what is to be done next?"})
        say(planner, f"thought {step}")
        messages.append({"role": "user", "content": "Do it."})
        for call in say(actor, f"action {step}", tool_choice="required").tool_calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": use(call)})
    messages.append({"role": "user", "content": "Now answer my question."})
    say(planner, "answer")
    return turns


def use(call: Any) -> str:
    """What the tool says, be it of its wrong use."""
    try:
        return get_weather_forecast(**json.loads(call.function.arguments))
    except (TypeError, ValueError) as error:
        return f"error: {error}"


if __name__ == "__main__":
    args = sharing.arguments(__doc__, planner="math", actor="tools")
    client = openai.OpenAI(base_url=f"{args.url}/v1", api_key=args.api_key)
    print(sharing.table(react(client, args.planner, args.actor)))
