"""Failures of workers and engines, and clients that hang up."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ps_sglang.gateway.state import GATEWAY
from ps_sglang.gateway.workers.breaker import FAILURES
from tests.gateway.gateway_setup import Setup, running
from tests.support.standin_engine import Plan

ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "one"}], "model": "a"},
    "/v1/completions": {"prompt": "one", "model": "a"},
    "/generate": {"text": "one", "model": "a"},
}
ABORT = {"type": "abort", "message": "out of memory", "status_code": 503}
route_and_stream = pytest.mark.parametrize(
    ("route", "stream"), [(route, stream) for route in ROUTES for stream in (False, True)]
)


def body_of(route: str, stream: bool, **more: Any) -> dict[str, Any]:
    return {**ROUTES[route], "stream": stream, **more}


def check_error(answer: Any) -> dict[str, Any]:
    """The error object, which must be OpenAI's."""
    assert set(answer) == {"error"}
    error: dict[str, Any] = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    return error


async def fails(gateway: Setup, route: str, stream: bool, **more: Any) -> tuple[int, Any]:
    """Status and error of a request that fails before anything was sent."""
    status, answer = await gateway.post(route, body_of(route, stream, **more))
    assert gateway.pending() == 0
    return status, check_error(answer)


async def stream_lines(gateway: Setup, route: str, **more: Any) -> list[str]:
    body = body_of(route, True, **more)
    async with gateway.http.post(gateway.url + route, json=body) as response:
        assert response.status == 200
        return [line for line in (await response.text()).split("\n\n") if line]


# Clients that hang up.


@route_and_stream
async def test_hanging_up_before_the_first_byte_ends_both_legs(
    gateway: Setup, route: str, stream: bool
) -> None:
    gateway.decode().plan.hang = True
    request = asyncio.create_task(gateway.post(route, body_of(route, stream)))
    await gateway.decode().saw(1)
    await gateway.prefill.saw(1)
    request.cancel()
    await gateway.decode().saw_hang_up()
    await gateway.prefill.saw_hang_up()
    rid = gateway.decode().requests[0]["rid"]
    assert gateway.decode().aborted == gateway.prefill.aborted == [rid]


@route_and_stream
async def test_hanging_up_after_the_handoff_ends_the_decode_leg(
    gateway: Setup, route: str, stream: bool
) -> None:
    gateway.decode().plan.step = asyncio.Semaphore(0)
    request = asyncio.create_task(gateway.post(route, body_of(route, stream)))
    await gateway.prefill.saw(1)
    await gateway.decode().saw(1)
    request.cancel()
    await gateway.decode().saw_hang_up()


@pytest.mark.parametrize("n", [1, 3])
async def test_hanging_up_in_a_stream_ends_it(gateway: Setup, n: int) -> None:
    gateway.decode().plan.step = asyncio.Semaphore(n)
    params = {"sampling_params": {"n": n, "max_new_tokens": 50}}
    response = await gateway.http.post(
        gateway.url + "/generate", json=body_of("/generate", True, **params)
    )
    await response.content.readuntil(b"\n\n")
    await gateway.decode().saw(n)
    response.close()
    await gateway.decode().saw_hang_up(n)


async def test_hanging_up_while_later_samples_wait(gateway: Setup) -> None:
    gateway.decode().plan.hang = True
    request = asyncio.create_task(
        gateway.post("/v1/completions", body_of("/v1/completions", False, n=3))
    )
    await gateway.decode().saw(1)
    await gateway.prefill.saw(1)
    request.cancel()
    await gateway.decode().saw_hang_up()
    await gateway.prefill.saw_hang_up()
    assert len(gateway.prefill.requests) == 1


# Prefill workers that fail.


@route_and_stream
@pytest.mark.parametrize(("engine", "client"), [(500, 502), (503, 503)])
async def test_a_failing_prefill_leg_ends_the_decode_leg(
    gateway: Setup, route: str, stream: bool, engine: int, client: int
) -> None:
    problem = {"object": "error", "message": "out of pages", "code": engine}
    gateway.prefill.plan.refuse = (engine, problem)
    gateway.decode().plan.hang = True
    status, error = await fails(gateway, route, stream)
    assert status == client
    assert "prefill worker 'prefill-0'" in error["message"]
    assert "out of pages" in error["message"]
    assert error["code"] == "worker_failed"
    await gateway.decode().saw_hang_up()


async def test_a_prefill_legs_refusal_is_the_clients_error(gateway: Setup) -> None:
    gateway.prefill.plan.refuse = (400, {"message": "the prompt is too long", "code": 400})
    gateway.decode().plan.hang = True
    status, error = await fails(gateway, "/v1/completions", False)
    assert (status, error["message"]) == (400, "the prompt is too long")


async def test_a_prefill_worker_that_fails_now_and_then_is_not_broken(gateway: Setup) -> None:
    worker_state = gateway.app[GATEWAY].pool.prefill[0]
    for _ in range(2):
        gateway.prefill.plan.refuse = (500, {"error": "now and then"})
        for _ in range(FAILURES - 1):
            await fails(gateway, "/generate", False)
        gateway.prefill.plan.refuse = None
        assert (await gateway.post("/generate", {"model": "a", "text": "x"}))[0] == 200
        assert worker_state.state == "good"


async def test_an_aborted_prefill_leg_is_a_failure(gateway: Setup) -> None:
    gateway.prefill.plan.abort = {"type": "abort", "message": "by id", "status_code": None}
    gateway.decode().plan.hang_after_handoff = True
    status, error = await fails(gateway, "/generate", False)
    assert status == 502
    assert "by id" in error["message"]


@route_and_stream
async def test_a_prefill_worker_that_dies(gateway: Setup, route: str, stream: bool) -> None:
    gateway.prefill.plan.die = True
    gateway.decode().plan.hang = True
    status, error = await fails(gateway, route, stream)
    assert status == 503
    assert "prefill worker 'prefill-0' is unreachable" in error["message"]
    await gateway.decode().saw_hang_up()


@pytest.mark.parametrize("n", [1, 2])
async def test_the_answer_does_not_wait_for_the_prefill_leg(gateway: Setup, n: int) -> None:
    gateway.prefill.plan.hang_after_handoff = True
    status, answer = await gateway.post("/v1/completions", body_of("/v1/completions", False, n=n))
    assert (status, len(answer["choices"])) == (200, n)
    # It counts as load of the prefill worker until it ends.
    assert gateway.pending() == 2 * n


# Decode workers that fail.

SHAPES = [
    {"object": "error", "message": "bad", "type": "BadRequestError", "param": None, "code": 400},
    {"error": {"message": "bad"}},
    {"error": "bad"},
    "bad",
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
async def test_an_engines_refusal_is_passed_on_in_openais_format(
    gateway: Setup, shape: Any, stream: bool
) -> None:
    gateway.decode().plan.refuse = (400, shape)
    gateway.prefill.plan.hang = True
    status, error = await fails(gateway, "/v1/completions", stream)
    assert status == 400
    assert error == {
        "message": "bad",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    await gateway.prefill.saw_hang_up()


# As FastAPI's RequestValidationError prints itself in SGLang's answer.
VALIDATION = """2 validation errors:
  {'type': 'float_parsing', 'loc': ('body', 'temperature'), 'msg': 'Input should be a number', 'input': 'hot'}
  {'type': 'value_error', 'loc': ('body', 'stop', 0), 'msg': "Value error, can't be", 'ctx': {'error': ValueError("can't be")}}

  File "/srv/sglang/http_server.py", line 1999, in openai_v1_chat_completions
    POST /v1/chat/completions"""  # noqa: E501


async def test_validation_errors_are_told_in_sentences(gateway: Setup) -> None:
    gateway.decode().plan.refuse = (400, {"object": "error", "message": VALIDATION, "code": 400})
    status, error = await fails(gateway, "/v1/chat/completions", False)
    assert (status, error["message"]) == (
        400,
        "`temperature`: Input should be a number, not 'hot'; `stop[0]`: can't be",
    )


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
async def test_an_engines_status_is_kept(gateway: Setup, status: int) -> None:
    gateway.decode().plan.refuse = (status, {"error": {"message": "no"}})
    found, error = await fails(gateway, "/generate", False)
    assert (found, error["message"]) == (status, "no")


@route_and_stream
async def test_an_abort_before_the_first_token_is_an_error_status(
    gateway: Setup, route: str, stream: bool
) -> None:
    gateway.decode().plan.abort = ABORT
    status, error = await fails(gateway, route, stream)
    # SGLang's OpenAI routes tell neither the reason nor its status.
    assert status == (503 if route == "/generate" else 500)
    assert "aborted the request" in error["message"]
    if route == "/generate":
        assert "out of memory" in error["message"]


@pytest.mark.parametrize("route", ROUTES)
async def test_an_error_as_the_first_event_is_an_error_status(gateway: Setup, route: str) -> None:
    gateway.decode().plan.stream_error = {"message": "too long", "code": 400}
    status, error = await fails(gateway, route, True)
    assert (status, error["message"]) == (400, "too long")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (Plan(die_after=1), "unreachable"),
        (Plan(cut_after=1), "before [DONE]"),
        (Plan(abort=ABORT, abort_after=1), "aborted"),
    ],
)
@pytest.mark.parametrize("n", [1, 2])
async def test_a_failure_after_the_first_byte_ends_the_stream_with_an_error(
    gateway: Setup, route: str, plan: Plan, said: str, n: int
) -> None:
    gateway.decode().plan = plan
    more = {"sampling_params": {"n": n}} if route == "/generate" else {"n": n}
    lines = await stream_lines(gateway, route, **more)
    assert "a-x-0" in "".join(lines[:-1])
    error = check_error(json.loads(lines[-1].removeprefix("data: ")))
    assert said in error["message"]
    assert gateway.pending() == 0


async def test_a_prefill_leg_that_fails_after_the_first_byte_changes_nothing(
    gateway: Setup,
) -> None:
    gateway.prefill.plan = Plan(step=asyncio.Semaphore(0), abort={"type": "abort"})
    tokens = gateway.decode().plan.step = asyncio.Semaphore(1)
    body = {"model": "a", "prompt": "x", "stream": True}
    async with gateway.http.post(gateway.url + "/v1/completions", json=body) as response:
        await response.content.readuntil(b"\n\n")
        (pair,) = gateway.app[GATEWAY].dispatcher._running
        for permits in (gateway.prefill.plan.step, tokens):
            assert permits is not None
            for _ in range(3):
                permits.release()
            assert pair._prefill_task is not None
            await asyncio.wait({pair._prefill_task})
        assert (await response.read()).endswith(b"data: [DONE]\n\n")


async def test_one_failing_sample_ends_the_others(gateway: Setup) -> None:
    gateway.decode().plan = Plan(
        refuse=(400, {"error": "no third"}), refuse_from=2, hang_after_handoff=True
    )
    status, error = await fails(gateway, "/v1/completions", False, n=3)
    assert (status, error["message"]) == (400, "no third")
    await gateway.decode().saw_hang_up(2)


@pytest.mark.parametrize("content", [b"[]", b"<html>", b""])
async def test_samples_that_are_no_json_objects(gateway: Setup, content: bytes) -> None:
    gateway.decode().plan.garbage = content
    status, _ = await fails(gateway, "/v1/completions", False, n=2)
    assert status == 502


# Workers that are not there.


@route_and_stream
@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("n", [1, 3])
async def test_another_worker_is_tried(
    replicated: Setup, route: str, stream: bool, role: str, n: int
) -> None:
    cluster = replicated.cluster
    await (cluster.prefill if role == "prefill" else cluster.decode["a"])[0].stop()
    more = {"sampling_params": {"n": n}} if route == "/generate" else {"n": n}
    body = body_of(route, stream, **more)
    for _ in range(3):
        async with replicated.http.post(replicated.url + route, json=body) as response:
            assert response.status == 200
            assert "a-x-2" in await response.text()
    assert replicated.pending() == 0


@pytest.mark.parametrize("plan", [Plan(die=True), Plan(die_after=0)])
async def test_another_worker_is_tried_for_one_that_dies(replicated: Setup, plan: Plan) -> None:
    first, second = replicated.cluster.decode["a"]
    first.plan = plan
    lines = await stream_lines(replicated, "/v1/chat/completions")
    assert lines[-1] == "data: [DONE]"
    assert (len(first.requests), len(second.requests)) == (1, 1)
    rooms = {worker.requests[0]["bootstrap_room"] for worker in (first, second)}
    assert len(rooms) == 2


async def test_a_lost_worker_is_believed_to_hold_nothing(replicated: Setup) -> None:
    inside = replicated.app[GATEWAY]
    text = "word " * 400
    prompt = inside.cache_index.prompts.prompt(text)
    await replicated.post("/v1/completions", {"model": "a", "prompt": text})
    home = next(worker for worker in replicated.cluster.prefill if worker.requests)
    assert home.name in inside.cache_index.match(prompt)
    await home.stop()
    longer = {"model": "a", "prompt": text + text}
    assert (await replicated.post("/v1/completions", longer))[0] == 200
    assert home.name not in inside.cache_index.match(prompt)


async def test_each_attempt_has_an_id_of_its_own() -> None:
    """The one decode worker gets the request again while it still aborts the first attempt."""
    async with running(prefill=2, decoders=("a",)) as gateway:
        for worker in gateway.cluster.prefill:
            worker.plan = Plan(die=True)
        await fails(gateway, "/v1/completions", False)
        ids = [request["rid"] for request in gateway.decode().requests]
        assert len(ids) == len(set(ids)) == 2


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_no_worker_is_left(replicated: Setup, role: str) -> None:
    cluster = replicated.cluster
    for worker in cluster.prefill if role == "prefill" else cluster.decode["a"]:
        await worker.stop()
    status, error = await fails(replicated, "/v1/completions", False)
    assert status == 503
    assert f"{role} worker" in error["message"]
    assert error["code"] == "worker_unreachable"


async def test_the_other_decoder_still_answers(gateway: Setup) -> None:
    await gateway.decode("b").stop()
    assert (await gateway.post("/v1/completions", {"prompt": "x", "model": "b"}))[0] == 503
    assert (await gateway.post("/v1/completions", {"prompt": "x", "model": "a"}))[0] == 200


async def test_stopping_the_gateway_ends_the_legs() -> None:
    async with running() as gateway:
        gateway.prefill.plan.hang_after_handoff = True
        await gateway.post("/v1/completions", ROUTES["/v1/completions"])
        prefill = gateway.prefill
        assert not prefill.hung_up
        await gateway.app.cleanup()
        await prefill.saw_hang_up_of_connection()


@route_and_stream
@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_kept_connection_that_breaks_after_the_request_was_taken(
    gateway: Setup, route: str, stream: bool, role: str
) -> None:
    status, _ = await gateway.post(route, body_of(route, False))
    assert status == 200  # the connections are kept
    worker = gateway.prefill if role == "prefill" else gateway.decode()
    worker.plan.die = True
    status, error = await fails(gateway, route, stream)
    assert (status, error["code"]) == (503, "worker_unreachable")
    assert "it took the request and closed the connection" in error["message"]
    assert len(worker.requests) == 2


async def test_another_worker_takes_over_what_was_taken_and_lost(replicated: Setup) -> None:
    workers = replicated.cluster.decode["a"]
    while not all(worker.requests for worker in workers):  # both connections are kept
        status, _ = await replicated.post("/generate", body_of("/generate", False))
        assert status == 200
    workers[0].plan.die = True
    while workers[0].plan.die:
        before = [len(worker.requests) for worker in workers]
        status, _ = await replicated.post("/generate", body_of("/generate", False))
        assert status == 200
        if len(workers[0].requests) > before[0]:
            assert len(workers[1].requests) == before[1] + 1
            workers[0].plan.die = False
