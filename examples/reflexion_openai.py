"""Reflexion with the OpenAI client: try, hear what is wrong, reflect, and try again.

    make demo                        # or your own cluster, with --solver and --critic
    python examples/reflexion_openai.py

A checker in Python tells whether the solver's number is right. If it is not, the critic says why,
and the solver tries again with that in view. Both read one conversation.
"""

from __future__ import annotations

import re
from typing import Any

import openai
import sharing

QUESTION = (
    "How many legs are there in total if you have 4 dogs and 3 birds, and one dog lost a leg? "
    "Work it out in short steps and end with #### and the number."
)
RIGHT = 4 * 4 + 3 * 2 - 1
TRIALS = 2


def reflexion(client: openai.OpenAI, solver: str, critic: str) -> list[sharing.Turn]:
    """At most TRIALS trials, with a reflection after each that failed."""
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    turns: list[sharing.Turn] = []

    def say(decoder: str, what: str) -> str:
        answer = client.chat.completions.create(
            model=decoder,
            messages=messages,
            temperature=0,
            max_tokens=48,
            extra_body={"return_cached_tokens_details": True},
        )
        turns.append(sharing.openai_turn(what, answer))
        messages.append({"role": "assistant", "content": turns[-1].said})
        return turns[-1].said

    for trial in range(1, TRIALS + 1):
        number = re.search(r"#### *(\d+)", say(solver, f"trial {trial}"))
        if number is not None and int(number[1]) == RIGHT:
            break
        messages.append({"role": "user", "content": "That is wrong. Which step, and why?"})
        say(critic, f"reflection {trial}")
        messages.append({"role": "user", "content": f"Try again. {QUESTION}"})
    return turns


if __name__ == "__main__":
    args = sharing.arguments(__doc__, solver="math", critic="base")
    client = openai.OpenAI(base_url=f"{args.url}/v1", api_key=args.api_key)
    print(sharing.table(reflexion(client, args.solver, args.critic)))
