"""ReAct with two decoders in one conversation: a planner thinks, an actor acts.

    ps-sglang launch --prefill base --decoders a,b,c
    python examples/react.py --planner a --actor b

The planner writes a thought and chooses a tool, the actor writes the tool's input and the final
answer. The tools run here, in Python. Each turn's prompt holds everything that was said before,
by whichever decoder: its KV is the base's, so what one decoder's turn has paid for, the other
does not pay for again. The table shows this for every turn.
"""

from __future__ import annotations

import argparse
import operator
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.error import URLError

import sglang as sgl

from ps_sglang.frontend import PrefillShareBackend, by

QUESTION = "A train runs at 84 km/h for 3 hours. How many kilometres is that?"
MAX_STEPS = 3
FACTS = {
    "days in a leap year": "366 days",
    "height of Mount Everest": "8849 metres",
    "minutes in a day": "1440 minutes",
    "speed of light": "299792 kilometres per second",
    "speed of sound": "343 metres per second",
}
OPERATORS: dict[str, Callable[[int, int], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
TASK = (
    "Two experts answer a question together. In each step the planner writes a thought and names "
    "an action: calculate works out one sum, look up finds a fact, finish ends the work. The actor "
    "writes the input of the action, and at the end the answer."
)


@dataclass(frozen=True)
class Turn:
    """What one decoder said in one turn, under the variable `name` of the program."""

    decoder: str
    name: str


def calculate(expression: str) -> str:
    """The value of `NUMBER OPERATOR NUMBER`, as the actor's input is constrained to be."""
    left, sign, right = expression.split()
    try:
        return f"{OPERATORS[sign](int(left), int(right)):g}"
    except ZeroDivisionError:
        return "error, division by zero"


def said(s: Any, name: str) -> str:
    """What was generated under `name`; raises the reason if nothing was."""
    if (reason := s.error()) is not None:
        raise reason
    text: str = s[name]
    return text


@sgl.function  # type: ignore[untyped-decorator]  # SGLang is not typed
def react(s: Any, question: str, planner: str, actor: str, turns: list[Turn]) -> None:
    """At most MAX_STEPS actions, then the answer; fills `turns` in the order of the talk."""

    def say(decoder: str, expression: Any) -> Any:
        turns.append(Turn(decoder, expression.name))
        return by(decoder, expression)

    s += sgl.system(TASK)
    s += sgl.user(f"Question: {question}")
    for step in range(1, MAX_STEPS + 1):
        thought, action, given = f"thought {step}", f"action {step}", f"input {step}"
        # An answer needs a tool's observation first.
        actions = ["calculate", "look up"] + ["finish"] * (step > 1)
        with s.assistant():
            s += "Thought: " + say(planner, sgl.gen(thought, max_tokens=32, stop=["\n", "Action"]))
            s += "\nAction: " + say(planner, sgl.select(action, actions))
            if said(s, action) == "calculate":
                s += "\nInput: " + say(
                    actor, sgl.gen(given, max_tokens=16, regex=r"[0-9]{1,5} [-+*/] [0-9]{1,5}")
                )
            elif s[action] == "look up":
                s += "\nInput: " + say(actor, sgl.select(given, list(FACTS)))
        if s[action] == "finish":
            break
        tool = calculate if s[action] == "calculate" else FACTS.__getitem__
        s += sgl.user(f"Observation: {tool(said(s, given))}")
    s += sgl.user("Write the answer in one sentence.")
    s += sgl.assistant("Answer: " + say(actor, sgl.gen("answer", max_tokens=32, stop="\n")))
    said(s, "answer")


def table(state: Any, turns: list[Turn]) -> Iterator[str]:
    """A line a turn. `held`: prompt tokens whose KV this decode worker had; `paid`: tokens that
    another decoder's turn had already paid for; `new`: tokens that this turn paid for."""
    yield f"{'decoder':<10}{'prompt':>8}{'held':>8}{'paid':>8}{'new':>8}  said"
    total = {"prompt": 0, "paid": 0}
    for turn in turns:
        meta = state.get_meta_info(turn.name)
        cached = meta["cached_tokens_details"] or {"device": 0, "host": 0}
        prompt, held, paid = meta["prompt_tokens"], cached["device"], cached["host"]
        total["prompt"] += prompt
        total["paid"] += paid
        text = " ".join(state[turn.name].split())
        text = text if len(text) <= 56 else text[:53] + "..."
        yield (
            f"{turn.decoder:<10}{prompt:>8}{held:>8}{paid:>8}{prompt - held - paid:>8}  "
            f"{turn.name}: {text}"
        )
    yield (
        f"{total['paid']} of {total['prompt']} prompt tokens came from what another decoder's "
        "turn had already paid for."
    )


def main() -> int:
    """Run one question; the exit status is 0 if every turn was answered."""
    parser = argparse.ArgumentParser(description="ReAct with two decoders in one conversation.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the cluster's gateway")
    parser.add_argument("--planner", default="a", help="decoder that thinks and chooses tools")
    parser.add_argument("--actor", default="b", help="decoder that uses them and answers")
    parser.add_argument("--question", default=QUESTION)
    args = parser.parse_args()
    try:
        backend = PrefillShareBackend(args.url, args.planner)
    except (URLError, RuntimeError, ValueError) as error:
        print(f"react: no use of the cluster at {args.url}: {error}", file=sys.stderr)
        return 2
    if args.actor not in backend.decoders:
        print(f"react: no decoder {args.actor!r}; {', '.join(backend.decoders)}", file=sys.stderr)
        return 2
    turns: list[Turn] = []
    try:
        state = react.run(
            args.question, args.planner, args.actor, turns, temperature=0, backend=backend
        )
    except (OSError, RuntimeError) as error:
        print(f"react: the program broke off: {error}", file=sys.stderr)
        return 1
    print(f"question: {args.question}")
    print(*table(state, turns), sep="\n")
    print(f"answer: {state['answer'].strip()}")
    print("(The demo's stand-in decoders are not trained for this: look at the columns.)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
