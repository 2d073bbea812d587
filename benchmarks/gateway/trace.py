"""An agent trace: sessions in which four decoders take turns on one conversation.

Each application has its system prompt with its tools, each tenant its cache salt. A session is a
task; its turns follow the ReAct pattern: the planner plans, then searcher and coder act and the
critic judges, in turn, and an action is followed by a tool's observation. Every turn sends the
whole conversation so far, ended by the instruction of the role whose turn it is. The answers are
part of the next prompts; stand-in engines give the same answer to the same prompt, so the prompts
of a trace do not depend on who serves it.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final

import msgspec

from benchmarks.gateway.client import Client
from benchmarks.gateway.latency import Target
from benchmarks.gateway.messages import Totals
from benchmarks.gateway.vocabulary import words

PLANNER, SEARCHER, CODER, CRITIC = ROLES = ("planner", "searcher", "coder", "critic")
Json = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """How much of everything. Lengths are in words, nearly all of which are one token."""

    slots: int  # sessions that run at the same time
    sessions: int
    turns: tuple[int, int] = (18, 30)
    applications: int = 3
    tenants: int = 2
    system_words: int = 600
    task_words: tuple[int, int] = (100, 300)
    observation_words: tuple[int, int] = (80, 400)
    instruction_words: int = 20
    answer_tokens: tuple[int, int] = (24, 64)
    pause_seconds: float = 0.05  # mean time that a tool or a user takes between turns


@dataclass(frozen=True)
class Turn:
    """What a turn adds to the conversation before it asks, and whom it asks for how much."""

    decoder: str
    said: tuple[Json, ...]
    answer_tokens: int
    pause: float


@dataclass(frozen=True)
class Session:
    """A task of a tenant with an application."""

    salt: str
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
    """The sessions of a trace, in the order in which they start."""
    source = random.Random(seed)
    known = words()

    def text(count: int) -> str:
        return " ".join(source.choices(known, k=count))

    def between(bounds: tuple[int, int]) -> int:
        return source.randint(*bounds)

    systems = [text(shape.system_words) for _ in range(shape.applications)]
    instructions = {role: f"You are the {role}. " + text(shape.instruction_words) for role in ROLES}
    found = []
    for number in range(shape.sessions):
        # The first ones end at any time, so that later ones do not keep step with each other.
        least, most = shape.turns if number >= shape.slots else (1, shape.turns[1])
        turns = []
        said: list[Json] = [{"role": "user", "content": text(between(shape.task_words))}]
        for role in roles(source.randint(least, most)):
            said.append({"role": "user", "content": instructions[role]})
            pause = source.expovariate(1 / shape.pause_seconds)
            turns.append(Turn(role, tuple(said), between(shape.answer_tokens), pause))
            said = []
            if role in (SEARCHER, CODER):
                # As a user's message, since sglang-router takes a tool's only with a call's id.
                observation = "Observation: " + text(between(shape.observation_words))
                said.append({"role": "user", "content": observation})
        salt = f"tenant-{source.randrange(shape.tenants)}"
        found.append(Session(salt, source.choice(systems), tuple(turns)))
    return found


def roles(count: int) -> Iterator[str]:
    """Whose turn it is: a plan, then actions and judgements, and a new plan after every second."""
    cycle = (PLANNER, *(SEARCHER, CODER, CRITIC) * 2)
    for number in range(count):
        yield cycle[number % len(cycle)]


async def run(shape: Shape, seed: int, target: Target) -> Run:
    """Run a trace before `target`."""
    left = iter(sessions(shape, seed))
    client, taken = Client(), Run()

    async def slot() -> None:
        for session in left:
            await _session(session, client, target, taken)

    begin = perf_counter()
    await asyncio.gather(*(slot() for _ in range(shape.slots)))
    taken.seconds = perf_counter() - begin
    client.close()
    return taken


async def _session(session: Session, client: Client, target: Target, taken: Run) -> None:
    messages: list[Json] = [{"role": "system", "content": session.system}]
    for turn in session.turns:
        await asyncio.sleep(turn.pause)
        messages += turn.said
        body = {
            "model": turn.decoder,
            "messages": messages,
            "max_tokens": turn.answer_tokens,
            "stream": True,
            "cache_salt": session.salt,
        }
        reply = await target.post(client, turn.decoder, msgspec.json.encode(body))
        taken.first.append(reply.first - reply.sent)
        taken.total.append(reply.done - reply.sent)
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
