"""Conversations and hints, over HTTP."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import Any

import pytest

from ps_sglang.events.messages import Pin, Release
from ps_sglang.gateway.bodies.requests import parse
from ps_sglang.gateway.bodies.samples import Endpoint
from ps_sglang.gateway.dispatch.worker_sender import RequestContext
from ps_sglang.gateway.errors import GatewayError
from ps_sglang.gateway.state import GATEWAY
from ps_sglang.priority import decode_priority, encode_priority
from tests.gateway.gateway_setup import Setup, running

PATHS = ("/v1/chat/completions", "/v1/completions", "/generate")


def body(path: str, words: str, **more: Any) -> dict[str, Any]:
    prompts: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": words}]},
        "/v1/completions": {"prompt": words},
        "/generate": {"text": words},
    }
    return {"model": "a", **prompts[path], **more}


async def ended(gateway: Setup) -> None:
    """Wait until what follows the answers has ended, too."""
    background = gateway.app[GATEWAY].background
    while background._tasks:
        await asyncio.wait(background._tasks)


@pytest.mark.parametrize("path", PATHS)
async def test_workers_are_told_the_session(gateway: Setup, path: str) -> None:
    await gateway.post(path, body(path, "one", session_id="talk"))
    await gateway.post(path, body(path, "two"), headers={"x-session-id": "walk"})
    await gateway.post(path, body(path, "three"))
    for worker in (gateway.prefill, gateway.decode()):
        assert [one.get("session_id") for one in worker.requests] == ["talk", "walk", None]


@pytest.mark.parametrize(
    ("in_body", "in_header", "problem"),
    [
        (
            "a",
            "b",
            "Of one session the body's `session_id` says 'a', but the header",
        ),
        (7, None, "`session_id` must be a text, not 7."),
        ("", None, "A session id must have 1 to 256 printable characters, not ''."),
        ("x" * 257, None, "A session id must have 1 to 256 printable characters"),
        ("two\nlines", None, "A session id must have 1 to 256 printable characters"),
    ],
)
async def test_session_ids_are_checked(
    gateway: Setup, in_body: Any, in_header: str | None, problem: str
) -> None:
    headers = {} if in_header is None else {"x-session-id": in_header}
    sent = body("/generate", "x", session_id=in_body)
    status, answer = await gateway.post("/generate", sent, headers=headers)
    assert status == 400
    assert answer["error"]["message"].startswith(problem)
    assert not gateway.prefill.requests


async def test_the_same_session_id_twice_is_one(gateway: Setup) -> None:
    sent = body("/generate", "x", session_id="s")
    assert (await gateway.post("/generate", sent, headers={"x-session-id": "s"}))[0] == 200


async def test_a_conversation_stays_with_its_workers(replicated: Setup) -> None:
    """Its prompts share nothing here, so nothing but the session keeps it."""
    for number in range(6):
        sent = body("/generate", f"{number} " * 50, session_id="talk")
        assert (await replicated.post("/generate", sent))[0] == 200
    counts = [len(worker.requests) for worker in replicated.cluster.workers]
    assert sorted(counts) == [0, 0, 6, 6]


async def test_ending_a_session_aborts_its_requests_on_all_decoders(gateway: Setup) -> None:
    for name in ("a", "b"):
        gateway.decode(name).plan.step = asyncio.Semaphore(1)
    whole = asyncio.create_task(
        gateway.post("/generate", body("/generate", "one", session_id="talk"))
    )
    other = asyncio.create_task(
        gateway.post("/generate", body("/generate", "two", session_id="walk"))
    )
    async with gateway.http.post(
        gateway.url + "/v1/completions",
        json=body("/v1/completions", "x", session_id="talk", stream=True) | {"model": "b"},
    ) as stream:
        assert stream.status == 200
        first = await stream.content.readuntil(b"\n\n")
        assert b"b-x-0" in first
        await gateway.decode().saw(2)
        async with gateway.http.delete(gateway.url + "/sessions/talk") as response:
            assert response.status == 200
            assert await response.json() == {
                "session": "talk",
                "ended": ["talk"],
                "aborted": 2,
                "workers": ["a-0", "b-0", "prefill-0"],
            }
        rest = (await stream.content.read()).decode()
    error = json.loads(rest.strip().removeprefix("data: "))["error"]
    assert (error["code"], error["message"]) == ("session_ended", "The session 'talk' has ended.")
    status, answer = await whole
    assert (status, answer["error"]["code"]) == (409, "session_ended")
    await gateway.decode("a").saw_hang_up()
    await gateway.decode("b").saw_hang_up()
    for _ in range(3):
        gateway.decode().plan.step.release()  # type: ignore[union-attr]
    assert (await other)[0] == 200, "another conversation goes on"
    assert gateway.pending() == 0


async def test_a_sample_that_has_not_started_ends_with_its_session(gateway: Setup) -> None:
    """The second sample waits for the prefill of the first."""
    gateway.prefill.plan.hang = True
    sent = body("/v1/completions", "x", n=2, session_id="talk")
    request = asyncio.create_task(gateway.post("/v1/completions", sent))
    await gateway.prefill.saw(1)
    async with gateway.http.post(gateway.url + "/sessions/talk/end") as response:
        assert (await response.json())["aborted"] == 1
    status, answer = await request
    assert (status, answer["error"]["code"]) == (409, "session_ended")
    assert len(gateway.prefill.requests) == 1


async def test_a_client_that_stopped_reading_does_not_keep_its_session_alive(
    gateway: Setup,
) -> None:
    inside = gateway.app[GATEWAY]
    gateway.decode().plan.step = asyncio.Semaphore(1)
    content = json.dumps(body("/generate", "x", stream=True)).encode()
    request = parse(Endpoint.GENERATE, content, None, {}, inside.served_to(""))
    session = inside.sessions.of("").use("talk")
    call = RequestContext(Endpoint.GENERATE, inside.pool.served("a"), "", session)
    async with aclosing(inside.dispatcher.stream(request, call)) as events:
        await anext(events)
        assert await inside.hint_actions.end_session(session) == 1
        await gateway.decode().saw_hang_up()
        assert gateway.pending() == 0
        with pytest.raises(GatewayError, match=r"^The session 'talk' has ended\.$"):
            await anext(events)


async def test_nothing_is_sent_for_a_session_that_is_over(gateway: Setup) -> None:
    inside = gateway.app[GATEWAY]
    content = json.dumps(body("/generate", "x")).encode()
    request = parse(Endpoint.GENERATE, content, None, {}, inside.served_to(""))
    session = inside.sessions.of("").use("talk")
    await inside.hint_actions.end_session(session)
    with pytest.raises(GatewayError, match=r"^The session 'talk' has ended\.$"):
        await inside.dispatcher.complete(
            request, RequestContext(Endpoint.GENERATE, inside.pool.served("a"), "", session)
        )
    assert not gateway.prefill.requests


async def test_a_session_that_is_over_is_not_found_and_may_begin_anew(gateway: Setup) -> None:
    sent = body("/generate", "x", session_id="talk")
    await gateway.post("/generate", sent)
    async with gateway.http.delete(gateway.url + "/sessions/talk") as response:
        assert (await response.json())["aborted"] == 0
    async with gateway.http.delete(gateway.url + "/sessions/talk") as response:
        assert response.status == 404
        error = (await response.json())["error"]
    assert error["code"] == "session_not_found"
    assert (await gateway.post("/generate", sent))[0] == 200


async def test_a_worker_that_left_is_not_held_by_sessions(replicated: Setup) -> None:
    sent = body("/generate", "x", session_id="talk")
    await replicated.post("/generate", sent)
    gateway = replicated.app[GATEWAY]
    session = gateway.sessions.of("").get("talk")
    assert session is not None
    prefill, decode = session.prefill, session.decode["a"]
    assert prefill is not None
    gateway.pool.remove(prefill.name)
    gateway.pool.remove(decode.name)
    assert (session.prefill, session.decode, session.visited) == (None, {}, set())
    assert (await replicated.post("/generate", sent))[0] == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
async def test_next_brings_the_turn_to_the_next_decoder(
    gateway: Setup, path: str, stream: bool
) -> None:
    sent = body(path, "one two", stream=stream, hints={"next": "b"}, session_id="talk")
    sent |= {"cache_salt": "t", "seed": 5, "max_tokens": 2, "stop": "nothing"}
    if path == "/generate":
        sent["sampling_params"] = {"max_new_tokens": 2, "sampling_seed": 5}
    async with gateway.http.post(gateway.url + path, json=sent) as response:
        assert response.status == 200
        await response.read()
    await ended(gateway)
    (got,) = gateway.decode("b").requests
    said = "a-5-0 a-5-1 "
    if path == "/generate":
        assert got["text"] == "one two" + said
        assert got["sampling_params"] == {"max_new_tokens": 0}
    elif path == "/v1/completions":
        assert got["prompt"] == "one two" + said
    else:
        answer = {"role": "assistant", "content": said}
        assert got["messages"] == [*sent["messages"], answer]
    if path != "/generate":
        assert (got["model"], got["max_tokens"]) == ("b", 1)
    assert (got["cache_salt"], got["session_id"]) == ("t", "talk")
    assert decode_priority(got["priority"]) == -1, (
        "it must not delay requests that somebody waits for"
    )
    assert not got.keys() & {"hints", "stop", "seed", "stream"}
    assert got["bootstrap_room"] == gateway.prefill.requests[-1]["bootstrap_room"]
    assert gateway.pending() == 0
    async with gateway.http.get(gateway.url + "/metrics") as response:
        assert 'prefetches_total{decoder="b",outcome="done"} 1.0' in await response.text()


async def test_next_with_token_ids(gateway: Setup) -> None:
    """The answer's ids are known for /generate only."""
    sent = {"model": "a", "input_ids": [1, 2, 3], "hints": {"next": "b"}}
    await gateway.post("/generate", sent)
    sent = {"model": "a", "prompt": [1, 2, 3], "hints": {"next": "b"}}
    await gateway.post("/v1/completions", sent)
    await ended(gateway)
    first, second = gateway.decode("b").requests
    assert first["input_ids"] == [1, 2, 3, 100, 101, 102]
    assert second["prompt"] == [1, 2, 3]


async def test_nothing_follows_a_turn_that_failed(gateway: Setup) -> None:
    sent = body("/generate", "x", hints={"next": "b", "pin": 5})
    gateway.decode().plan.refuse = (400, {"error": {"message": "no"}})
    assert (await gateway.post("/generate", sent))[0] == 400
    gateway.decode().plan.refuse = None
    gateway.decode().plan.abort_after, gateway.decode().plan.abort = 1, {"type": "abort"}
    async with gateway.http.post(
        gateway.url + "/generate", json={**sent, "stream": True}
    ) as response:
        assert b"error" in await response.read()
    await ended(gateway)
    assert not gateway.decode("b").requests


async def test_a_prefetch_that_fails_fails_alone(gateway: Setup) -> None:
    gateway.decode("b").plan.refuse = (400, {"error": {"message": "no"}})
    assert (await gateway.post("/generate", body("/generate", "x", hints={"next": "b"})))[0] == 200
    await ended(gateway)
    async with gateway.http.get(gateway.url + "/metrics") as response:
        assert 'prefetches_total{decoder="b",outcome="failed"} 1.0' in await response.text()


async def test_release_ends_the_session_with_its_answer(gateway: Setup) -> None:
    sent = body("/generate", "x", session_id="talk", hints={"release": True})
    assert (await gateway.post("/generate", sent))[0] == 200
    await ended(gateway)
    assert gateway.app[GATEWAY].sessions.of("").get("talk") is None


async def test_workers_are_told_about_the_pages_of_a_conversation() -> None:
    async with running(events=True) as gateway:
        for hint in ({"pin": 5}, {"next": "b", "pin": 7}, {"release": True}):
            sent = body("/generate", "x", session_id="talk", hints=hint)
            assert (await gateway.post("/generate", sent))[0] == 200
            await ended(gateway)
        told = [Pin("talk", 5), Pin("talk", 7), Release("talk")]
        assert await gateway.prefill.was_told(3) == told
        assert await gateway.decode("a").was_told(3) == told
        assert await gateway.decode("b").was_told(2) == told[1:], "it was there from then on"


async def test_a_session_that_ended_is_released_and_not_pinned_after_that() -> None:
    async with running(events=True) as gateway:
        gateway.decode("b").plan.hang = True
        sent = body("/generate", "x", session_id="talk", hints={"next": "b", "pin": 7})
        assert (await gateway.post("/generate", sent))[0] == 200
        await gateway.decode("b").saw(1)
        async with gateway.http.delete(gateway.url + "/sessions/talk") as response:
            assert (await response.json())["aborted"] == 1, "the prefetch"
        await ended(gateway)
        for worker in gateway.cluster.workers:
            assert await worker.was_told(1) == [Release("talk")]


async def test_a_worker_that_does_not_hear_of_pages_holds_up_nothing() -> None:
    async with running(events=True) as gateway:
        sent = body("/generate", "x", session_id="talk")
        await gateway.post("/generate", sent)
        silent = gateway.prefill.publisher
        assert silent is not None
        silent.shutdown()
        async with gateway.http.delete(gateway.url + "/sessions/talk") as response:
            assert response.status == 200
        assert await gateway.decode().was_told(1) == [Release("talk")]


async def test_hints_about_pages_need_no_session_of_the_client(gateway: Setup) -> None:
    for hint in ({"pin": 5}, {"release": True}):
        await gateway.post("/generate", body("/generate", "x", hints=hint))
    await ended(gateway)
    first, second = (one["session_id"] for one in gateway.decode().requests)
    assert first != second
    assert len(gateway.app[GATEWAY].sessions.of("")) == 0


async def test_workers_are_told_how_much_is_held(gateway: Setup) -> None:
    for _ in range(2):
        await gateway.post("/generate", body("/generate", "x" * 400))
    await ended(gateway)
    for worker in (gateway.prefill, gateway.decode()):
        first, again = (one["priority"] for one in worker.requests)
        assert (first, decode_priority(again)) == (0, 0)
        assert again > 0


@pytest.mark.parametrize("priority", ["high", 1.5, 2**31, True])
async def test_a_priority_that_is_none_is_refused(gateway: Setup, priority: object) -> None:
    status, answer = await gateway.post("/generate", body("/generate", "x", priority=priority))
    assert (status, answer["error"]["param"]) == (400, "priority")
    assert not gateway.prefill.requests


async def test_priority_goes_to_both_workers(gateway: Setup) -> None:
    headers = {"x-agent-hints": '{"priority": 3}'}
    await gateway.post("/generate", body("/generate", "x"), headers=headers)
    for worker in (gateway.prefill, gateway.decode()):
        (got,) = worker.requests
        assert got["priority"] == encode_priority(3, 0)
        assert "hints" not in got


@pytest.mark.parametrize(
    ("hints", "problem"),
    [
        ("soon", "`hints` cannot be used: Expected `object`, got `str`"),
        ({"then": "b"}, "`hints` cannot be used: Object contains unknown field `then`."),
        ({"next": 1}, "`hints` cannot be used: Expected `str | null`, got `int` - at `$.next`."),
        ({"next": "c"}, "`hints.next` names the model 'c', which does not exist; served models: "),
        ({"pin": 0}, "`hints`: `pin` must be above 0 and at most 3600 seconds, not 0"),
        ({"pin": 1e9}, "`hints`: `pin` must be above 0 and at most 3600 seconds, not 1"),
        ({"pin": 1, "release": True}, "`hints`: `pin` keeps what `release` lets go"),
        ({"next": "b", "release": True}, "`hints`: `next` continues the conversation"),
        ({"priority": 2**31}, "`hints`: `priority` must fit 32 bits"),
    ],
)
async def test_hints_are_checked(gateway: Setup, hints: Any, problem: str) -> None:
    status, answer = await gateway.post("/generate", body("/generate", "x", hints=hints))
    assert status == 400
    assert answer["error"]["message"].startswith(problem)
    assert answer["error"]["param"] == "hints"
    assert not gateway.prefill.requests


async def test_hints_come_from_one_place(gateway: Setup) -> None:
    sent = body("/generate", "x", hints={"pin": 1})
    status, answer = await gateway.post("/generate", sent, headers={"x-agent-hints": "{}"})
    assert (status, answer["error"]["message"]) == (
        400,
        "Send hints in the body's `hints` or in the header `x-agent-hints`, not in both.",
    )
    sent = body("/generate", "x")
    status, answer = await gateway.post("/generate", sent, headers={"x-agent-hints": "{"})
    assert status == 400
    assert answer["error"]["message"].startswith("The header `x-agent-hints` is not valid JSON: ")


async def test_next_wants_one_answer(gateway: Setup) -> None:
    sent = body("/v1/completions", "x", n=2, hints={"next": "b"})
    status, answer = await gateway.post("/v1/completions", sent)
    assert status == 400
    assert answer["error"]["message"] == (
        "`hints.next` needs one answer to continue, but the request asks for 2."
    )


@pytest.mark.parametrize(
    ("tenant", "salt"),
    [
        ({}, None),
        ({"cache_salt": "s"}, "s"),
        ({"extra_key": "k"}, "\0k"),
        ({"cache_salt": "s", "extra_key": "k"}, "s\0k"),
        ({"cache_salt": "", "extra_key": None}, None),
    ],
)
async def test_tenants_are_told_by_the_salt_alone(
    gateway: Setup, tenant: dict[str, Any], salt: str | None
) -> None:
    await gateway.post("/generate", body("/generate", "x", **tenant))
    for worker in (gateway.prefill, gateway.decode()):
        (got,) = worker.requests
        assert got.get("cache_salt") == salt
        assert "extra_key" not in got


async def test_no_tenant_can_be_mistaken_for_two(gateway: Setup) -> None:
    status, answer = await gateway.post("/generate", body("/generate", "x", cache_salt="s\0k"))
    assert status == 400
    assert answer["error"]["message"].startswith("`cache_salt` must be a text without NUL")


async def test_a_route_is_explained_without_a_request() -> None:
    async with running(prefill=2, replicas=2) as gateway:
        sent = body("/v1/completions", "word " * 200, session_id="talk")
        await gateway.post("/v1/completions", sent)
        requests = [len(worker.requests) for worker in gateway.cluster.workers]
        status, told = await gateway.post("/debug/route", {**sent, "prompt": "word " * 300})
        assert status == 200
        assert [len(worker.requests) for worker in gateway.cluster.workers] == requests
        assert told["route"] == "/v1/completions"
        assert (told["decoder"], told["session"]) == ("a", "talk")
        (decision,) = told["decisions"]
        assert len(decision["candidates"]) == 4
        best = decision["candidates"][0]
        assert decision["chosen"] == {"prefill": best["prefill"], "decode": best["decode"]}
        home = next(worker for worker in gateway.cluster.prefill if worker.requests)
        assert best["prefill"] == home.name
        assert best["held"]["prefill"] == 128, "a block of the estimate: 512 bytes"
        assert set(best["terms"]) == {"new", "queue", "balance", "move", "load", "leaves"}
        _, chat = await gateway.post("/models/b/debug/route", {"messages": [{"role": "user"}]})
        assert (chat["route"], chat["decoder"]) == ("/v1/chat/completions", "b")
        _, two = await gateway.post("/debug/route", {"model": "a", "text": ["x", "y"]})
        assert len(two["decisions"]) == 2
        status, answer = await gateway.post("/debug/route", {"model": "a"})
        assert (status, answer["error"]["param"]) == (400, None)
