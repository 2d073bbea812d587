"""ReAct as an SGLang program: a planner thinks and chooses the tool, an actor uses it.

    make demo                        # or your own cluster, with --planner and --actor
    python examples/react_sglang.py

`by(decoder, ...)` says who speaks. Each turn's prompt is all that was said before, by whichever
decoder, and the base computes each part of it once.
"""

from __future__ import annotations

import operator
from typing import Any

import sglang as sgl
import sharing

from ps_sglang.frontend import PrefillShareBackend, by

QUESTION = "A train runs at 84 km/h for 3 hours. How many kilometres is that?"
STEPS = 2
FACTS = {"speed of light": "299792 km/s", "speed of sound": "343 m/s"}
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
SUM = r"[0-9]{1,4} [-+*] [0-9]{1,4}"


def calculate(expression: str) -> str:
    left, sign, right = expression.split()
    return str(OPERATORS[sign](int(left), int(right)))


@sgl.function
def react(s: Any, planner: str, actor: str, turns: list[sharing.Turn]) -> None:
    """Thought, action and observation, at most STEPS times; then the answer."""

    def say(decoder: str, expression: Any) -> str:
        nonlocal s
        s += by(decoder, expression)
        turns.append(sharing.sglang_turn(s, decoder, expression.name))
        return turns[-1].said

    s += sgl.system("Answer with the help of tools. `calculate` a sum, `look up` a fact, `finish`.")
    s += sgl.user(QUESTION)
    for step in range(1, STEPS + 1):
        with s.assistant():
            s += "Thought: "
            say(planner, sgl.gen(f"thought {step}", max_tokens=32, stop="\n"))
            s += "\nAction: "
            tools = ["calculate", "look up"] + ["finish"] * (step > 1)
            tool = say(planner, sgl.select(f"action {step}", tools))
            if tool == "finish":
                break
            s += "\nInput: "
            if tool == "calculate":
                given = say(actor, sgl.gen(f"input {step}", max_tokens=16, regex=SUM))
            else:
                given = say(actor, sgl.select(f"input {step}", list(FACTS)))
        s += sgl.user(f"Observation: {calculate(given) if tool == 'calculate' else FACTS[given]}")
    s += sgl.user("Write the answer in one sentence.")
    with s.assistant():
        say(actor, sgl.gen("answer", max_tokens=32, stop="\n"))


if __name__ == "__main__":
    args = sharing.arguments(__doc__, planner="base", actor="math")
    backend = PrefillShareBackend(args.url, api_key=args.api_key)
    turns: list[sharing.Turn] = []
    react.run(args.planner, args.actor, turns, backend=backend, temperature=0)
    print(sharing.table(turns))
