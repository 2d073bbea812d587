"""Sessions of agents, the same for every system: who speaks when, after how much, for how long.

Pure data in tokens. Sessions arrive by a Poisson process. Two shapes are the paper's agents:

- ReAct (arXiv 2210.03629): planner and actor in a loop; each action brings an observation.
- Reflexion (arXiv 2303.11366): trials of an actor's steps, each trial followed by an evaluator and
  a self-reflection, all over the same context.

The third, text, is real conversations (see `text`).

The paper that this measures (arXiv 2602.12029) states no lengths: see `Shape` for each default.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal

from ps_sglang.errors import UsageError

Kind = Literal["react", "reflexion", "text"]
KINDS: Final[tuple[Kind, ...]] = ("react", "reflexion")
"""The shapes whose sessions `sessions` draws."""
TEXT: Final = "text"
ALL_AT_ONCE: Final = 1e6
"""Sessions a second, where all come at once."""


@dataclass(frozen=True)
class Shape:
    """How much of everything, in tokens and seconds.

    `steps`: 7 is the limit of the ReAct paper on HotpotQA; the same limit serves Reflexion's
    trials, of which there are `trials`. Reflexion's memory keeps up to 3 reflections, which bounds
    the trials that a context can hold. All lengths are assumptions, for want of published ones:
    `system_tokens`, instructions, few-shot examples and tools, the same for all sessions;
    `task_tokens` a question; `observation_tokens` (mean, exponential) a tool's few
    paragraphs; `output_tokens` (range) a thought or a call; `pause` (mean, exponential) the
    time of a tool. Of text, the lengths are its own, and there are at most `steps` answers.
    """

    kind: Kind = "react"
    decoders: int = 4
    steps: int = 7
    trials: int = 3
    system_tokens: int = 2048
    task_tokens: tuple[int, int] = (64, 256)
    observation_tokens: int = 512
    observation_most: int = 4096
    output_tokens: tuple[int, int] = (32, 128)
    pause: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in (*KINDS, TEXT):
            kinds = ", ".join((*KINDS, TEXT))
            raise UsageError(f"the workload is one of {kinds}, not {self.kind!r}")
        if min(self.decoders, self.steps, self.trials) < 1:
            raise UsageError("decoders, steps and trials must be at least 1")


@dataclass(frozen=True)
class Turn:
    """A decoder's turn: `added` tokens join the context, then `output` tokens are generated.

    `pause` is the time from the end of the turn before.
    """

    decoder: int
    added: int
    output: int
    pause: float


@dataclass(frozen=True)
class Session:
    """`start`: when its first turn is asked; all sessions share the first `system` tokens.

    `texts`: the tokens that join at each turn, where they are not drawn; any ids, which are taken
    modulo those that a model has.
    """

    number: int
    start: float
    system: int
    turns: tuple[Turn, ...]
    texts: tuple[tuple[int, ...], ...] = ()

    def prompts(self) -> Iterator[tuple[Turn, int]]:
        """Each turn with its prompt's length."""
        length = self.system
        for turn in self.turns:
            length += turn.added
            yield turn, length
            length += turn.output


def sessions(shape: Shape, rate: float, count: int, seed: int) -> list[Session]:
    """`count` sessions that arrive at `rate` a second.

    The rate only scales the time between arrivals: all else is the same for every rate.
    """
    trace = []
    for number, start in enumerate(arrivals(rate, count, seed)):
        source = random.Random(f"session {seed} {number}")
        trace.append(Session(number, start, shape.system_tokens, tuple(_turns(shape, source))))
    return trace


def arrivals(rate: float, count: int, seed: int) -> list[float]:
    """A Poisson process of `rate` a second."""
    if not rate > 0:
        raise UsageError(f"the arrival rate must be above 0 sessions a second, not {rate}")
    source = random.Random(f"arrivals {seed}")
    return list(accumulate(source.expovariate(1.0) / rate for _ in range(count)))


def _turns(shape: Shape, source: random.Random) -> Iterator[Turn]:
    added, pause = source.randint(*shape.task_tokens), 0.0
    for place, acts in enumerate(_roles(shape)):
        # Each place in the loop has a decoder of its own, as far as there are that many.
        yield Turn(place % shape.decoders, added, source.randint(*shape.output_tokens), pause)
        added, pause = 0, 0.0
        if acts:
            length = 1 + int(source.expovariate(1 / shape.observation_tokens))
            added = min(shape.observation_most, length)
            pause = source.expovariate(1 / shape.pause) if shape.pause else 0.0


def _roles(shape: Shape) -> Iterator[bool]:
    """Whether each turn acts, so that an observation follows."""
    if shape.kind == "react":
        for _ in range(shape.steps):
            yield from (False, True)  # the planner, the actor
    else:
        for _ in range(shape.trials):
            yield from [True] * shape.steps
            yield from (False, False)  # the evaluator, the self-reflection


class Conversation:
    """A session's context in token ids; `vocabulary` is the first id that is not used.

    Prompts are prefixes of each other: what is added is drawn by seed, session and turn alone, and
    answers are those that the caller gives, which must have the forced length.
    """

    def __init__(self, session: Session, seed: int, vocabulary: int, first: int = 0) -> None:
        self._session, self._seed = session, seed
        self._ids = range(first, vocabulary)
        self._next = 0
        system = random.Random(f"system {seed}")
        self.context: list[int] = system.choices(self._ids, k=session.system)

    def ask(self) -> list[int]:
        """The next turn's prompt."""
        if self._session.texts:
            text = self._session.texts[self._next]
            self.context += [self._ids[token % len(self._ids)] for token in text]
        else:
            turn = self._session.turns[self._next]
            source = random.Random(f"added {self._seed} {self._session.number} {self._next}")
            self.context += source.choices(self._ids, k=turn.added)
        return list(self.context)

    def answered(self, ids: Sequence[int]) -> None:
        """The turn's answer; raises ValueError if its length is another than the forced one."""
        expected = self._session.turns[self._next].output
        if len(ids) != expected:
            raise ValueError(f"an answer has {len(ids)} tokens, not the forced {expected}")
        self.context += ids
        self._next += 1


@dataclass(frozen=True)
class Work:
    """What a trace asks for, in tokens, and what must be prefilled if nothing is ever evicted.

    Base prefixes count: prompts without their last token. `shared`: one prefill for all decoders;
    `per_model`: each decoder's own.
    """

    prompt: int
    output: int
    shared: int
    per_model: int

    @property
    def ideal_ratio(self) -> float:
        """How many times fewer prompt tokens a shared prefill computes."""
        return self.per_model / self.shared

    @property
    def shared_hit(self) -> float:
        """The hit ratio that a shared prefill can reach."""
        return 1 - self.shared / self.prompt

    @property
    def per_model_hit(self) -> float:
        """The hit ratio that a prefill per decoder can reach."""
        return 1 - self.per_model / self.prompt


def work(trace: Sequence[Session], page: int = 1) -> Work:
    """What a trace allows where trees hold whole pages of `page` tokens."""
    turns = [(turn.output, length - 1) for session in trace for turn, length in session.prompts()]
    shared, per_model = (
        sum(prefill.new for prefill in prefills(trace, by_model, page))
        for by_model in (False, True)
    )
    return Work(sum(base for _, base in turns), sum(out for out, _ in turns), shared, per_model)


@dataclass(frozen=True)
class Prefill:
    """`new` tokens of a base prefix, behind `held` that a tree has."""

    held: int
    new: int


def prefills(trace: Sequence[Session], by_model: bool, page: int = 1) -> Iterator[Prefill]:
    """What each turn's prefill must compute, with a tree for all decoders or one for each."""
    system_known: set[int] = set()
    for session in trace:
        by_tree: dict[int, int] = {}
        for turn, length in session.prompts():
            tree, base = turn.decoder if by_model else 0, length - 1
            system = session.system if tree in system_known else 0
            cached = min(max(by_tree.get(tree, 0), system), base) // page * page
            yield Prefill(cached, base - cached)
            by_tree[tree] = base
            system_known.add(tree)
