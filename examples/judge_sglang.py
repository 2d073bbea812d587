"""A planner, a coder and a judge as an SGLang program.

    make demo                        # or your own cluster, with --planner, --coder and --judge
    python examples/judge_sglang.py

The planner says how to go about a task, the coder writes it in two ways at the same time, and the
judge chooses. All three read one conversation, which forks for the coder.
"""

from __future__ import annotations

from typing import Any

import sglang as sgl
import sharing

from ps_sglang.frontend import PrefillShareBackend, by

TASK = (
    "Write a Python function `summarize(xs)` that takes a list of integers `xs`. First, keep only "
    "the even numbers; then square each number. Finally, return the sum."
)
WAYS = {"A": "a loop", "B": "one expression"}


@sgl.function
def judged(s: Any, planner: str, coder: str, judge: str, turns: list[sharing.Turn]) -> None:
    """A plan, a program for each of WAYS, and the verdict."""
    s += sgl.user(f"{TASK} Say in one sentence how to go about it.")
    s += sgl.assistant(by(planner, sgl.gen("plan", max_tokens=64)))
    turns.append(sharing.sglang_turn(s, planner, "plan"))
    forks = s.fork(len(WAYS))
    for fork, (way, how) in zip(forks, WAYS.items(), strict=True):
        fork += sgl.user(f"{TASK} Use {how}. Reply with the code only.")
        fork += sgl.assistant(by(coder, sgl.gen(f"code {way}", max_tokens=64)))
    forks.join()
    shown = ""
    for fork, way in zip(forks, WAYS, strict=True):
        turns.append(sharing.sglang_turn(fork, coder, f"code {way}"))
        shown += f"{way}:\n{turns[-1].said}\n\n"
    s += sgl.user(f"{shown}Which is better, A or B?")
    s += sgl.assistant(by(judge, sgl.select("verdict", list(WAYS))))
    turns.append(sharing.sglang_turn(s, judge, "verdict"))


if __name__ == "__main__":
    args = sharing.arguments(__doc__, planner="base", coder="code", judge="math")
    backend = PrefillShareBackend(args.url, api_key=args.api_key)
    turns: list[sharing.Turn] = []
    judged.run(args.planner, args.coder, args.judge, turns, backend=backend, temperature=0)
    print(sharing.table(turns))
