"""Reflexion as an SGLang program: try, hear what is wrong, reflect, and try again.

    make demo                        # or your own cluster, with --solver and --critic
    python examples/reflexion_sglang.py

A checker in Python tells whether the solver's number is right. If it is not, the critic says why,
and the solver tries again with that in view. Both read one conversation.
"""

from __future__ import annotations

from typing import Any

import sglang as sgl
import sharing

from ps_sglang.frontend import PrefillShareBackend, by

QUESTION = (
    "How many legs are there in total if you have 4 dogs and 3 birds, and one dog lost a leg?"
)
RIGHT = 4 * 4 + 3 * 2 - 1
TRIALS = 2


@sgl.function
def reflexion(s: Any, solver: str, critic: str, turns: list[sharing.Turn]) -> None:
    """At most TRIALS trials, with a reflection after each that failed."""
    s += sgl.user(QUESTION)
    for trial in range(1, TRIALS + 1):
        steps, number, reflection = f"steps {trial}", f"number {trial}", f"reflection {trial}"
        with s.assistant():
            s += by(solver, sgl.gen(steps, max_tokens=48, stop="####"))
            s += "#### " + by(solver, sgl.gen(number, max_tokens=4, regex="[0-9]{1,3}"))
        turns.append(sharing.sglang_turn(s, solver, steps))
        turns.append(sharing.sglang_turn(s, solver, number))
        if int(s[number]) == RIGHT:
            break
        s += sgl.user("That is wrong. Which step, and why?")
        s += sgl.assistant(by(critic, sgl.gen(reflection, max_tokens=48)))
        turns.append(sharing.sglang_turn(s, critic, reflection))
        s += sgl.user(f"Try again. {QUESTION}")


if __name__ == "__main__":
    args = sharing.arguments(__doc__, solver="math", critic="base")
    backend = PrefillShareBackend(args.url, api_key=args.api_key)
    turns: list[sharing.Turn] = []
    reflexion.run(args.solver, args.critic, turns, backend=backend, temperature=0)
    print(sharing.table(turns))
