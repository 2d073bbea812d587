"""A planner, a coder and a judge with the OpenAI client.

    make demo                        # or your own cluster, with --planner, --coder and --judge
    python examples/judge_openai.py

The planner says how to go about a task, the coder writes it in two ways at the same time, and the
judge chooses. All three read one conversation.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import sharing

TASK = (
    "Write a Python function `summarize(xs)` that takes a list of integers `xs`. First, keep only "
    "the even numbers; then square each number. Finally, return the sum."
)
WAYS = {"A": "a loop", "B": "one expression"}


def judged(client: openai.OpenAI, planner: str, coder: str, judge: str) -> list[sharing.Turn]:
    """A plan, a program for each of WAYS, and the verdict."""

    def say(decoder: str, what: str, messages: list[Any], **more: Any) -> sharing.Turn:
        answer = client.chat.completions.create(
            model=decoder,
            messages=messages,
            temperature=0,
            max_tokens=64,
            extra_body={"return_cached_tokens_details": True, **more},
        )
        return sharing.openai_turn(what, answer)

    talk = [{"role": "user", "content": f"{TASK} Say in one sentence how to go about it."}]
    plan = say(planner, "plan", talk)
    talk.append({"role": "assistant", "content": plan.said})

    def write(way: str) -> sharing.Turn:
        ask = f"{TASK} Use {WAYS[way]}. Reply with the code only."
        return say(coder, f"code {way}", [*talk, {"role": "user", "content": ask}])

    with ThreadPoolExecutor(len(WAYS)) as pool:
        codes = list(pool.map(write, WAYS))
    shown = "\n\n".join(f"{way}:\n{code.said}" for way, code in zip(WAYS, codes, strict=True))
    talk.append({"role": "user", "content": f"{shown}\n\nWhich is better, A or B?"})
    return [plan, *codes, say(judge, "verdict", talk, regex="A|B")]


if __name__ == "__main__":
    args = sharing.arguments(__doc__, planner="base", coder="code", judge="math")
    client = openai.OpenAI(base_url=f"{args.url}/v1", api_key=args.api_key)
    print(sharing.table(judged(client, args.planner, args.coder, args.judge)))
