"""The agents benchmark's sessions: each one's turns follow each other, over one context."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import perf_counter

import pytest
from aiohttp import web

from benchmarks.sessions.client import Answer, Client, TurnFailed
from benchmarks.sessions.drive import Load, drive
from benchmarks.sessions.running import Endpoint
from benchmarks.sessions.workload import Conversation, Session, Shape, sessions

SHAPE = Shape(
    decoders=2, steps=2, system_tokens=8, task_tokens=(2, 4), observation_tokens=3,
    output_tokens=(1, 3), pause=0.0,
)  # fmt: skip


class Engine:
    """Says each prompt's length, again and again; knows what it was asked and how much at once."""

    def __init__(self, *, fails: int | None = None) -> None:
        self.asked: list[tuple[int, list[int]]] = []
        self.busy = self.most = 0
        self._fails = fails

    async def ask(self, decoder: int, prompt: Sequence[int], output: int) -> Answer:
        self.asked.append((decoder, list(prompt)))
        if len(self.asked) - 1 == self._fails:
            raise TurnFailed("broken")
        self.busy += 1
        self.most = max(self.most, self.busy)
        await asyncio.sleep(0)
        self.busy -= 1
        now = perf_counter()
        return Answer([len(prompt)] * output, now, now, now)


def conversation(session: Session) -> Conversation:
    return Conversation(session, 0, 1000, 100)


def trace(count: int) -> list[Session]:
    return sessions(SHAPE, 1e6, count, 0)


async def test_prompts_grow_by_what_was_said_and_added() -> None:
    engine, (session,) = Engine(), trace(1)
    run = await drive([session], Load(concurrent=1), conversation, engine.ask)
    assert [decoder for decoder, _ in engine.asked] == [turn.decoder for turn in session.turns]
    assert [len(prompt) for _, prompt in engine.asked] == [n for _, n in session.prompts()]
    for turn, (_, before), (_, prompt) in zip(
        session.turns, engine.asked, engine.asked[1:], strict=False
    ):
        assert prompt[: len(before) + turn.output] == before + [len(before)] * turn.output
    assert not run.failures
    assert len(run.sessions) == 1
    assert [turn.prompt for turn in run.turns] == [n for _, n in session.prompts()]


@pytest.mark.parametrize(
    ("load", "most"), [(Load(concurrent=2), 2), (Load(rate=1e6), 6), (Load(), 6)]
)
async def test_a_closed_load_bounds_the_sessions_at_a_time(load: Load, most: int) -> None:
    engine = Engine()
    await drive(trace(6), load, conversation, engine.ask)
    assert engine.most == most


async def test_a_session_that_fails_ends_alone() -> None:
    engine, said = Engine(fails=1), list[str]()
    run = await drive(trace(2), Load(concurrent=1), conversation, engine.ask, said.append)
    assert run.failures == ["session 0: broken"]
    assert len(run.sessions) == 1
    assert len(run.turns) == 1 + len(trace(2)[1].turns)
    assert said[-1] == f"0 of 2 sessions, {len(run.turns)} turns"


async def test_sessions_wait_for_their_arrival() -> None:
    arrivals = [session.start for session in sessions(SHAPE, 20.0, 2, 0)]
    late = sessions(SHAPE, 20.0, 2, 0)
    engine = Engine()
    run = await drive(late, Load(rate=20.0), conversation, engine.ask)
    assert [start for start, _ in sorted(run.sessions)] == pytest.approx(arrivals)
    assert min(turn.asked for turn in run.turns if turn.session == 1) >= arrivals[1]


@asynccontextmanager
async def served(*events: bytes, status: int = 200) -> AsyncIterator[tuple[str, list[object]]]:
    """An engine's HTTP side: `/generate` that answers with these bytes, each in a write."""
    asked: list[object] = []

    async def generate(request: web.Request) -> web.StreamResponse:
        asked.append(await request.json())
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        for event in events:
            await response.write(event)
        return response

    app = web.Application()
    app.router.add_post("/generate", generate)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0]
        yield f"http://{host}:{port}/generate", asked
    finally:
        await runner.cleanup()


def event(*ids: int) -> bytes:
    return b"data: " + json.dumps({"text": "x", "output_ids": ids, "meta_info": {}}).encode()


async def test_the_client_takes_the_last_event_and_the_first_ones_time() -> None:
    cut = event(7, 8) + b"\n\n" + event(7, 8, 9)
    async with (
        served(event(7) + b"\n\n", cut[:20], cut[20:] + b"\n\ndata: [DONE]\n\n") as (url, asked),
        Client([Endpoint("http://127.0.0.1:9/unused"), Endpoint(url)]) as client,
    ):
        answer = await client.ask(1, [1, 2], 3)
    assert answer.ids == [7, 8, 9]
    assert answer.asked <= answer.first <= answer.done
    assert asked == [
        {
            "input_ids": [1, 2],
            "stream": True,
            "sampling_params": {"max_new_tokens": 3, "temperature": 0, "ignore_eos": True},
        }
    ]


async def test_a_timeline_after_the_answer_is_no_part_of_it() -> None:
    seconds = {"prefill": 0.25, "decode": 0.5, "total": 1.0}
    told = {"timeline": [{"rid": "r", "seconds": seconds, "tokens": {"computed": 3}}]}
    last = b"\n\ndata: " + json.dumps(told, separators=(",", ":")).encode()
    async with (
        served(event(7, 8), last + b"\n\ndata: [DONE]\n\n") as (url, _),
        Client([Endpoint(url)]) as client,
    ):
        answer = await client.ask(0, [1], 2)
    assert answer.ids == [7, 8]
    assert answer.stages == {"prefill": 0.25, "decode": 0.5}
    assert answer.tokens == {"computed": 3}


@pytest.mark.parametrize(
    ("events", "status", "message"),
    [
        ([b"out of memory"], 500, "500: out of memory"),
        ([event(7), b"\n\n"], 200, "1 tokens, not 2"),
        ([b'data: {"error": {"message": "aborted"}}\n\n'], 200, "no answer.*aborted"),
        ([], 200, "no answer"),
    ],
)
async def test_anything_but_the_forced_answer_is_a_failure(
    events: list[bytes], status: int, message: str
) -> None:
    async with served(*events, status=status) as (url, _), Client([Endpoint(url)]) as client:
        with pytest.raises(TurnFailed, match=message):
            await client.ask(0, [1], 2)


async def test_nobody_there_is_a_failure() -> None:
    async with served() as (url, _):
        pass
    async with Client([Endpoint(url)]) as client:
        with pytest.raises(TurnFailed, match="Connect"):
            await client.ask(0, [1], 2)
