"""An agent trace: sessions in which four decoders take turns on one conversation.

Who speaks follows the two agents that PrefillShare was measured with: a step is a thought of the
planner and an action of the actor (ReAct), whose result a tool tells; after three steps the critic
judges and the reflector writes down what to do better (Reflexion), and the next trial begins.
Every turn sends the whole conversation so far, ended by the instruction of the role whose turn it
is. The answers are part of the next prompts; stand-in engines give the same answer to the same
prompt, so the prompts of a trace do not depend on who serves it.

How long everything is follows the published trace of Codex on SWE-bench Pro
(huggingface.co/datasets/Inferact/codex_swebenchpro_traces, 610 sessions), see `Shape`.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, exp
from typing import Any, Final

import msgspec

from benchmarks.gateway.client import Client, Reply
from benchmarks.gateway.latency import Target
from benchmarks.gateway.messages import Totals
from benchmarks.gateway.vocabulary import words

PLANNER, ACTOR, CRITIC, REFLECTOR = ROLES = ("planner", "actor", "critic", "reflector")
STEPS: Final = 3
_CYCLE: Final = (*(PLANNER, ACTOR) * STEPS, CRITIC, REFLECTOR)
Json = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """How much of everything. Lengths are in words, nearly all of which are one token.

    A 16th of Codex's lengths, so that two processor cores can play a trace before several engines:

    - turns: 30 in the median, 57 at the 90th percentile, 90 at the 99th; log-normal.
    - system and task: the first call has 12,367 tokens in the mean, 12,278 at the median and
      13,744 at the 99th percentile: nearly all of it are the system prompt and the tools, which
      all sessions share. Taken for 11,000 shared tokens and 500 to 2,200 of the task.
    - answers: 17,239 tokens in 33 calls.
    - growth: from 12,367 tokens in the first call to 84,482 in the last, 2,250 a call. What
      answers and instructions leave of it are observations, which follow each action, three in
      eight turns; exponential, as they go from a few words to whole files.

    Time is scaled, too: an answer of 522 tokens takes a large model ten seconds and a tool two or
    three, which 0.1 s and 0.03 s stand for.
    """

    slots: int  # sessions that run at the same time
    sessions: int
    turns_median: int = 30
    turns_spread: float = 0.5  # of the logarithm
    turns_most: int = 90
    system_words: int = 688
    task_words: tuple[int, int] = (32, 138)
    observation_words: int = 224  # in the mean
    observation_most: int = 1000
    instruction_words: int = 12
    answer_tokens: tuple[int, int] = (17, 49)
    pause_seconds: float = 0.03  # in the mean


@dataclass(frozen=True)
class Turn:
    """What a turn adds to the conversation before it asks, and whom it asks for how much."""

    decoder: str
    said: tuple[Json, ...]
    answer_tokens: int
    pause: float


@dataclass(frozen=True)
class Session:
    """A task, and the agent's system prompt."""

    system: str
    turns: tuple[Turn, ...]


@dataclass
class Run:
    """What a trace measured: seconds until the first words and until the end of each turn."""

    first: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    seconds: float = 0.0


def judged(taken: Run, prefill: Sequence[Totals]) -> dict[str, float]:
    """What a run says about who chose the prefill workers.

    Hits are prompt tokens that a prefill worker did not compute; imbalance is the tokens that the
    busiest one computed, over their mean.
    """
    prompt = sum(one.prompt_tokens for one in prefill)
    computed = [one.computed_tokens for one in prefill]
    return {
        "requests": len(taken.total),
        "prompt_tokens": prompt,
        "computed_tokens": sum(computed),
        "evicted_tokens": sum(one.evicted_tokens for one in prefill),
        "hit_percent": 100 * (1 - sum(computed) / prompt),
        "imbalance": max(computed) * len(computed) / sum(computed),
        "busy_percent": 100
        * sum(one.busy_seconds for one in prefill)
        / taken.seconds
        / len(prefill),
        "first_p95_ms": _p95(taken.first) * 1000,
        "total_p95_ms": _p95(taken.total) * 1000,
        "seconds": taken.seconds,
    }


def _p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[18]


def sessions(shape: Shape, seed: int) -> list[Session]:
    """The sessions of a trace, in the order in which they start.

    The first ones, one for each slot, are under way when it begins, so that there are as many
    tokens of live conversations at its beginning as at its end.
    """
    source = random.Random(seed)
    known = words()

    def text(count: int) -> str:
        return " ".join(source.choices(known, k=count))

    system = text(shape.system_words)
    instructions = {role: f"You are the {role}. " + text(shape.instruction_words) for role in ROLES}

    def turns_of(count: int) -> Iterator[Turn]:
        said: list[Json] = [{"role": "user", "content": text(source.randint(*shape.task_words))}]
        for role in roles(count):
            said.append({"role": "user", "content": instructions[role]})
            pause = source.expovariate(1 / shape.pause_seconds)
            yield Turn(role, tuple(said), source.randint(*shape.answer_tokens), pause)
            said = []
            if role == ACTOR:
                length = ceil(source.expovariate(1 / shape.observation_words))
                # As a user's message, since sglang-router takes a tool's only with a call's id.
                observation = "Observation: " + text(min(shape.observation_most, length))
                said.append({"role": "user", "content": observation})

    def length(under_way: bool) -> int:
        # Whoever looks in finds a long session more often than a short one, by its length.
        longer = shape.turns_spread**2 if under_way else 0.0
        drawn = shape.turns_median * exp(source.gauss(longer, shape.turns_spread))
        return min(shape.turns_most, ceil(drawn))

    found = []
    for number in range(shape.sessions):
        under_way = number < shape.slots
        turns = list(turns_of(length(under_way)))
        if under_way:
            turns = _from_turn(source.randrange(len(turns)), turns, text)
        found.append(Session(system, tuple(turns)))
    return found


def _from_turn(number: int, turns: Sequence[Turn], text: Callable[[int], str]) -> list[Turn]:
    """A session whose first turns were taken before: they are part of its first prompt."""
    before: list[Json] = []
    for turn in turns[:number]:
        before += turn.said
        before.append({"role": "assistant", "content": text(turn.answer_tokens)})
    first = turns[number]
    return [replace(first, said=(*before, *first.said)), *turns[number + 1 :]]


def roles(count: int) -> Iterator[str]:
    """Whose turn it is."""
    for number in range(count):
        yield _CYCLE[number % len(_CYCLE)]


def working_set(shape: Shape) -> int:
    """Tokens of all conversations that are alive at the same time, as expected of the shape.

    What they share counts once. A conversation is as long as the prompt of its turn. A trace has
    some more or less: its sessions are few, and their lengths differ.
    """
    many = replace(shape, slots=0, sessions=_SAMPLED_SESSIONS)
    lengths: list[int] = []
    for session in sessions(many, seed=0):
        length = 0
        for turn in session.turns:
            length += sum(_tokens(message["content"]) for message in turn.said)
            lengths.append(length)
            length += turn.answer_tokens + _FRAME_TOKENS
    return round(shape.slots * statistics.mean(lengths)) + shape.system_words


_SAMPLED_SESSIONS: Final = 1000
_FRAME_TOKENS: Final = 6
"""Of the chat template, around each message."""


def _tokens(content: str) -> int:
    return content.count(" ") + 1 + _FRAME_TOKENS


async def run(shape: Shape, seed: int, target: Target) -> Run:
    """Run a trace before `target`.

    It ends when a slot finds no other session to begin, so that it always has as many sessions.
    """
    left = deque(sessions(shape, seed))
    client, taken = Client(), Run()
    ended = False

    async def slot() -> None:
        nonlocal ended
        while left:
            async for reply in _session(left.popleft(), client, target):
                taken.first.append(reply.first - reply.sent)
                taken.total.append(reply.done - reply.sent)
                if ended:
                    return
        ended = True

    clock = asyncio.get_running_loop().time
    begin = clock()
    await asyncio.gather(*(slot() for _ in range(shape.slots)))
    taken.seconds = clock() - begin
    client.close()
    return taken


async def _session(session: Session, client: Client, target: Target) -> AsyncIterator[Reply]:
    messages: list[Json] = [{"role": "system", "content": session.system}]
    for turn in session.turns:
        await asyncio.sleep(turn.pause)
        messages += turn.said
        body = {
            "model": turn.decoder,
            "messages": messages,
            "max_tokens": turn.answer_tokens,
            "stream": True,
        }
        reply = await target.post(client, turn.decoder, msgspec.json.encode(body))
        yield reply
        messages.append({"role": "assistant", "content": streamed_text(reply.content)})


class _Delta(msgspec.Struct):
    content: str = ""


class _Choice(msgspec.Struct):
    delta: _Delta


class _Chunk(msgspec.Struct):
    choices: list[_Choice]


_CHUNK: Final = msgspec.json.Decoder(_Chunk)


def streamed_text(content: bytes) -> str:
    """The answer that a streamed chat gave."""
    events = content.removesuffix(b"data: [DONE]\n\n").split(b"\n\n")
    chunks = [_CHUNK.decode(event.removeprefix(b"data: ")) for event in events if event]
    return "".join(choice.delta.content for chunk in chunks for choice in chunk.choices)
