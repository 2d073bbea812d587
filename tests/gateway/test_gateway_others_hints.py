"""Sessions, pins and priorities by the names of other clients and gateways."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ps_sglang.events.messages import Pin, Release
from ps_sglang.gateway.bodies import session_id
from ps_sglang.gateway.bodies.session_id import SessionName
from ps_sglang.gateway.errors import BadRequest
from ps_sglang.gateway.routing.sessions import Sessions
from ps_sglang.gateway.state import GATEWAY
from ps_sglang.priority import decode_priority
from tests.gateway.gateway_setup import Setup, running
from tests.gateway.hand_clock import Clock
from tests.gateway.test_gateway_sessions import ended

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "x"}]


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "a", "messages": MESSAGES, "max_tokens": 2, **fields}


@pytest.mark.parametrize(
    ("fields", "headers", "expected"),
    [
        ({}, {}, None),
        ({"session_id": "s"}, {}, SessionName("s")),
        ({"session_id": "s", "parent_session_id": "p"}, {}, SessionName("s", ("p",))),
        ({}, {"x-session-id": "s", "x-parent-session-id": "p"}, SessionName("s", ("p",))),
        ({}, {"x-dynamo-session-id": "s"}, SessionName("s")),
        ({}, {"x-claude-code-session-id": "s"}, SessionName("s")),
        (
            {},
            {"x-claude-code-session-id": "s", "x-claude-code-agent-id": "kid"},
            SessionName("s:kid", ("s",)),
        ),
        (
            {},
            {
                "x-claude-code-session-id": "s",
                "x-claude-code-agent-id": "kid",
                "x-claude-code-parent-agent-id": "mother",
            },
            SessionName("s:kid", ("s:mother", "s")),
        ),
        ({}, {"session-id": "s", "thread-id": "s"}, SessionName("s")),
        ({}, {"session-id": "s", "thread-id": "t"}, SessionName("t", ("s",))),
        (
            {"prompt_cache_key": "t"},
            {"session-id": "s", "thread-id": "t", "x-codex-parent-thread-id": "u"},
            SessionName("t", ("u", "s")),
        ),
        ({"prompt_cache_key": "k"}, {}, SessionName("k")),
        ({"prompt_cache_key": "k"}, {"x-session-id": "s"}, SessionName("s")),
        (
            {"nvext": {"agent_context": {"session_id": "s", "parent_session_id": "p"}}},
            {"x-session-id": "s"},
            SessionName("s", ("p",)),
        ),
    ],
)
def test_a_session_by_the_names_of_many(
    fields: dict[str, Any], headers: dict[str, str], expected: SessionName | None
) -> None:
    assert session_id.read(fields, headers) == expected
    assert not {"session_id", "parent_session_id", "prompt_cache_key"} & fields.keys()


@pytest.mark.parametrize(
    ("fields", "headers", "problem"),
    [
        ({"session_id": "s"}, {"x-session-id": "t"}, "the body's `session_id` says 's', but the"),
        ({}, {"x-session-id": "s", "session-id": "t"}, "`x-session-id` says 's', but the header"),
        (
            {},
            {
                "x-session-id": "s",
                "x-parent-session-id": "p",
                "x-dynamo-session-id": "s",
                "x-dynamo-parent-session-id": "q",
            },
            "says 'p', but the header `x-dynamo-session-id` says 'q'",
        ),
        ({"prompt_cache_key": ""}, {}, "must have 1 to 256 printable characters, not ''"),
        ({"prompt_cache_key": 5}, {}, "`prompt_cache_key` must be a text, not 5."),
        ({"session_id": "s", "parent_session_id": "x" * 257}, {}, "must have 1 to 256"),
        ({"nvext": {"agent_context": {"session_id": 5}}}, {}, "printable characters, not 5"),
    ],
)
def test_sessions_that_differ_or_cannot_be_are_refused(
    fields: dict[str, Any], headers: dict[str, str], problem: str
) -> None:
    with pytest.raises(BadRequest) as refused:
        session_id.read(fields, headers)
    assert problem in refused.value.message


async def test_one_call_ends_a_tree_of_agents(gateway: Setup) -> None:
    gateway.decode().plan.step = asyncio.Semaphore(0)
    below = {"child": "root", "grandchild": "child", "other": "elsewhere"}
    tasks = {
        name: asyncio.create_task(
            gateway.post(CHAT, body(session_id=name, parent_session_id=parent))
        )
        for name, parent in below.items()
    }
    await gateway.decode().saw(3)
    async with gateway.http.delete(gateway.url + "/sessions/root") as response:
        answer = await response.json()
    assert answer == {
        "session": "root",
        "ended": ["child", "grandchild"],
        "aborted": 2,
        "workers": ["a-0", "prefill-0"],
    }
    for name in ("child", "grandchild"):
        assert (await tasks[name])[1]["error"]["code"] == "session_ended"
    assert not tasks["other"].done()
    async with gateway.http.delete(gateway.url + "/sessions/other") as response:
        assert (await response.json())["aborted"] == 1
    assert (await tasks["other"])[0] == 409
    assert not gateway.app[GATEWAY].sessions.of("")._family._parents, "nothing is left behind"
    async with gateway.http.delete(gateway.url + "/sessions/root") as response:
        assert response.status == 404


async def test_a_session_has_one_parent_and_no_circle(gateway: Setup) -> None:
    await gateway.post(CHAT, body(session_id="kid", parent_session_id="mother"))
    status, answer = await gateway.post(CHAT, body(session_id="kid", parent_session_id="other"))
    assert status == 400
    assert "is below 'mother' already" in answer["error"]["message"]
    status, answer = await gateway.post(CHAT, body(session_id="mother", parent_session_id="kid"))
    assert status == 400
    assert "which is below it" in answer["error"]["message"]
    assert (await gateway.post(CHAT, body(session_id="kid")))[0] == 200


def test_families_are_forgotten_with_their_sessions(clock: Clock) -> None:
    sessions = Sessions(idle_seconds=10, clock=clock)
    sessions.use("kid", ("mother", "root"))
    assert [one.id for one in sessions.tree("root")] == ["kid"]
    clock.now += 11
    sessions.use("another")
    assert sessions.tree("root") == []
    assert not sessions._family._parents
    assert not sessions._family._children


def test_a_parent_that_ended_still_leads_to_its_children() -> None:
    sessions = Sessions()
    sessions.use("kid", ("mother",))
    mother = sessions.use("mother", ("root",))
    sessions.end(mother, BadRequest("over"))
    assert [one.id for one in sessions.tree("root")] == ["kid"]


PART = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
HOUR = {"type": "ephemeral", "ttl": "1h"}
FUNCTION = {"type": "function", "function": {"name": "f"}, "cache_control": HOUR}


@pytest.mark.parametrize(
    ("path", "fields", "seconds"),
    [
        (CHAT, {"cache_control": HOUR}, 3600),
        (CHAT, {"messages": [{"role": "user", "content": [PART]}]}, 300),
        (CHAT, {"messages": [{"role": "user", "content": [PART]}], "tools": [FUNCTION]}, 3600),
        (CHAT, {"prompt_cache_retention": "24h"}, 3600),
        (CHAT, {"nvext": {"cache_control": {"type": "ephemeral", "ttl": "5m"}}}, 300),
        (CHAT, {"cache_control": HOUR, "hints": {"pin": 5}}, 5),
        ("/v1/messages", {"system": [PART]}, 300),
        ("/v1/messages", {"cache_control": HOUR}, 3600),
        (
            "/v1/messages",
            {"tools": [{"name": "f", "input_schema": {}, "cache_control": HOUR}]},
            3600,
        ),
        (
            "/v1/messages",
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "tool_result", "tool_use_id": "t", "cache_control": HOUR}
                        ],
                    }
                ]
            },
            3600,
        ),
    ],
)
async def test_what_others_keep_is_pinned(path: str, fields: dict[str, Any], seconds: int) -> None:
    async with running(events=True, decoders=("a",)) as setup:
        status, answer = await setup.post(path, body(session_id="talk", **fields))
        assert status == 200, answer
        assert await setup.decode().was_told(1) == [Pin("talk", seconds)]


async def test_an_answer_in_memory_is_not_pinned() -> None:
    async with running(events=True, decoders=("a",)) as setup:
        await setup.post(CHAT, body(session_id="talk", prompt_cache_retention="in_memory"))
        await ended(setup)
        assert setup.decode().commands == []


async def test_dynamos_last_request_releases() -> None:
    async with running(events=True, decoders=("a",)) as setup:
        headers = {"x-dynamo-session-id": "talk", "x-dynamo-session-final": "true"}
        await setup.post(CHAT, body(cache_control=HOUR), headers=headers)
        assert await setup.decode().was_told(1) == [Release("talk")]


async def test_dynamos_speculative_prefill_brings_the_answer_to_the_same_decoder(
    gateway: Setup,
) -> None:
    nvext = {"agent_hints": {"speculative_prefill": True, "osl": 5}}
    await gateway.post(CHAT, body(nvext=nvext))
    await ended(gateway)
    _, again = gateway.decode().requests
    assert again["messages"] == [*MESSAGES, {"role": "assistant", "content": "a-x-0 a-x-1 "}]


@pytest.mark.parametrize(
    ("fields", "headers", "priority"),
    [
        ({}, {}, 0),
        ({"service_tier": "auto"}, {}, 0),
        ({"service_tier": "priority"}, {}, 1),
        ({"service_tier": "flex"}, {}, -1),
        ({}, {"x-smg-priority": "bulk"}, -1),
        ({"service_tier": "flex"}, {"x-smg-priority": "interactive"}, 1),
        ({"nvext": {"agent_hints": {"priority": 7}}, "service_tier": "flex"}, {}, 7),
        ({"nvext": {"agent_hints": {"priority": 7}}, "priority": 2}, {}, 2),
        ({"nvext": {"agent_hints": {"priority": 7}}, "hints": {"priority": 3}}, {}, 3),
    ],
)
async def test_priorities_by_other_names(
    gateway: Setup, fields: dict[str, Any], headers: dict[str, str], priority: int
) -> None:
    assert (await gateway.post(CHAT, body(**fields), headers=headers))[0] == 200
    (seen,) = gateway.decode().requests
    assert decode_priority(seen["priority"]) == priority
    assert not {"nvext", "service_tier", "cache_control"} & seen.keys()


@pytest.mark.parametrize(
    ("fields", "headers", "problem"),
    [
        ({"service_tier": "gold"}, {}, "`service_tier` must be one of 'auto'"),
        ({"prompt_cache_retention": "1y"}, {}, "`prompt_cache_retention` must be one of"),
        ({"cache_control": {"type": "ephemeral", "ttl": "2h"}}, {}, "`cache_control.ttl` must be"),
        ({"cache_control": {"type": "lasting"}}, {}, "`cache_control.type` must be 'ephemeral'"),
        ({"cache_control": 5}, {}, "`cache_control` must be an object, not a number."),
        ({"nvext": 5}, {}, "`nvext` must be an object, not a number."),
        ({"nvext": {"agent_hints": []}}, {}, "`nvext.agent_hints` must be an object"),
        ({"nvext": {"agent_hints": {"priority": 1.5}}}, {}, "`nvext.agent_hints.priority` must"),
        ({"nvext": {"agent_hints": {"speculative_prefill": 1}}}, {}, "`nvext.agent_hints.specu"),
        ({}, {"x-smg-priority": "royal"}, "`x-smg-priority` must be one of 'system'"),
    ],
)
async def test_hints_of_others_that_cannot_be_are_refused(
    gateway: Setup, fields: dict[str, Any], headers: dict[str, str], problem: str
) -> None:
    status, answer = await gateway.post(CHAT, body(**fields), headers=headers)
    assert status == 400
    assert answer["error"]["message"].startswith(problem)
    assert not gateway.prefill.requests
