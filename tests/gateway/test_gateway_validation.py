"""What is refused before any worker hears of it."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from tests.gateway.gateway_setup import Setup, running

CHAT, COMPLETIONS, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
MESSAGES = [{"role": "user", "content": "x"}]
VALID: dict[str, dict[str, Any]] = {
    CHAT: {"model": "a", "messages": MESSAGES},
    COMPLETIONS: {"model": "a", "prompt": "x"},
    GENERATE: {"model": "a", "text": "x"},
}


def part(kind: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": kind}]}]


# (route, fields that make a valid body invalid, what the message must say)
REFUSED = [
    # Wrong types and values of what the gateway reads.
    (CHAT, {"model": 5}, "`model`"),
    (CHAT, {"messages": None}, "`messages`"),
    (CHAT, {"messages": []}, "`messages`"),
    (CHAT, {"messages": "x"}, "`messages`"),
    (CHAT, {"messages": ["x"]}, "`messages[0]`"),
    (CHAT, {"messages": {"role": "user"}}, "`messages`"),
    (CHAT, {"input_ids": ["x"]}, "`input_ids`"),
    (CHAT, {"input_ids": list(range(100))}, "100 tokens"),
    (COMPLETIONS, {"prompt": None}, "`prompt`"),
    (COMPLETIONS, {"prompt": 5}, "`prompt`"),
    (COMPLETIONS, {"prompt": ""}, "`prompt` must not be empty"),
    (COMPLETIONS, {"prompt": []}, "`prompt` must not be empty"),
    (COMPLETIONS, {"prompt": ["x", ""]}, "`prompt` must not be empty"),
    (COMPLETIONS, {"prompt": [[]]}, "`prompt` must not be empty"),
    (COMPLETIONS, {"prompt": ["x", 5]}, "`prompt`"),
    (COMPLETIONS, {"prompt": [True]}, "`prompt`"),
    (COMPLETIONS, {"prompt": [1.5]}, "`prompt`"),
    (COMPLETIONS, {"prompt": list(range(100))}, "the context holds 100"),
    (COMPLETIONS, {"prompt": ["x"] * 1025, "n": 2}, "2048"),
    (COMPLETIONS, {"n": "2"}, "`n`"),
    (COMPLETIONS, {"n": True}, "`n`"),
    (COMPLETIONS, {"n": 0}, "`n`"),
    (COMPLETIONS, {"n": 129}, "`n` must be from 1 to 128"),
    (COMPLETIONS, {"stream": "yes"}, "`stream`"),
    (COMPLETIONS, {"stream": 1}, "`stream`"),
    (COMPLETIONS, {"seed": 1.5}, "`seed`"),
    (COMPLETIONS, {"seed": 2**63}, "`seed`"),
    (COMPLETIONS, {"cache_salt": 5}, "`cache_salt`"),
    (COMPLETIONS, {"rid": 5}, "`rid`"),
    (COMPLETIONS, {"rid": ""}, "`rid`"),
    (COMPLETIONS, {"rid": ["x", "y"]}, "`rid`"),
    (COMPLETIONS, {"prompt": ["x", "y"], "extra_key": ["k"]}, "`extra_key`"),
    (COMPLETIONS, {"max_tokens": 0}, "`max_tokens`"),
    (COMPLETIONS, {"max_tokens": -1}, "`max_tokens`"),
    (COMPLETIONS, {"max_tokens": "5"}, "`max_tokens`"),
    (CHAT, {"max_completion_tokens": 0}, "`max_completion_tokens`"),
    (GENERATE, {"text": None}, "neither"),
    (GENERATE, {"input_ids": [1]}, "both"),
    (GENERATE, {"text": 5}, "`text`"),
    (GENERATE, {"text": [1, 2]}, "`text`"),
    (GENERATE, {"text": ""}, "`text` must not be empty"),
    (GENERATE, {"text": None, "input_ids": "x"}, "`input_ids`"),
    (GENERATE, {"text": None, "input_ids": ["x", "y"]}, "`input_ids`"),
    (GENERATE, {"text": None, "input_ids": []}, "`input_ids` must not be empty"),
    (GENERATE, {"sampling_params": 5}, "`sampling_params`"),
    (GENERATE, {"sampling_params": [5]}, "`sampling_params`"),
    (GENERATE, {"sampling_params": [{}]}, "`sampling_params`"),
    (GENERATE, {"text": ["x"], "sampling_params": []}, "`sampling_params`"),
    (GENERATE, {"text": ["x", "y"], "sampling_params": [{}, {"n": 2}]}, "same for all"),
    (GENERATE, {"sampling_params": {"n": 0}}, "`sampling_params.n`"),
    (GENERATE, {"sampling_params": {"max_new_tokens": -1}}, "`sampling_params.max_new_tokens`"),
    (GENERATE, {"sampling_params": {"sampling_seed": "x"}}, "`sampling_params.sampling_seed`"),
    (GENERATE, {"text": ["x", "y"], "return_logprob": [True]}, "`return_logprob`"),
    # What a disaggregated cluster of text models does not have.
    (COMPLETIONS, {"echo": True, "logprobs": 0}, "`echo` with `logprobs`"),
    (CHAT, {"prompt_logprobs": 0}, "`prompt_logprobs`"),
    (GENERATE, {"return_logprob": True, "logprob_start_len": 0}, "`logprob_start_len`"),
    (GENERATE, {"return_logprob": [True], "logprob_start_len": [-1, 3]}, "`logprob_start_len`"),
    (COMPLETIONS, {"best_of": 2}, "`best_of`"),
    (GENERATE, {"return_hidden_states": True}, "`return_hidden_states`"),
    (GENERATE, {"return_hidden_states": "last"}, "`return_hidden_states`"),
    (CHAT, {"lora_path": "adapter"}, "`lora_path`"),
    (GENERATE, {"session_params": {"id": "s"}}, "`session_params`"),
    (GENERATE, {"image_data": "x"}, "`image_data`"),
    (GENERATE, {"input_embeds": [[0.5]]}, "`input_embeds`"),
    (GENERATE, {"background": True}, "`background`"),
    *((CHAT, {"messages": part(kind)}, f"`{kind}`") for kind in ("image_url", "input_audio")),
    *((CHAT, {"messages": part(kind)}, f"`{kind}`") for kind in ("video_url", "file")),
    *(
        (route, {name: 0}, f"`{name}` is set by the gateway")
        for route in VALID
        for name in ("bootstrap_host", "bootstrap_port", "bootstrap_room")
    ),
    (COMPLETIONS, {"data_parallel_rank": 0}, "`data_parallel_rank`"),
    (COMPLETIONS, {"routed_dp_rank": 0}, "`routed_dp_rank`"),
    (COMPLETIONS, {"disagg_prefill_dp_rank": 0}, "`disagg_prefill_dp_rank`"),
]

BODIES = [
    b"",
    b"{",
    b'{"prompt": "x"',
    b"\xff\xfe",
    b'{"prompt": "\xff"}',
    b"[]",
    b'"x"',
    b"null",
    b"5",
    b"NaN",
    b'{"prompt": NaN}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
]


def check(gateway: Setup, answer: Any, said: str) -> None:
    error = answer["error"]
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}
    assert not any(worker.requests for worker in gateway.cluster.workers)
    assert gateway.pending() == 0


@pytest.mark.parametrize(("route", "fields", "said"), REFUSED)
async def test_a_bad_field_is_named(
    gateway: Setup, route: str, fields: dict[str, Any], said: str
) -> None:
    status, answer = await gateway.post(route, {**VALID[route], **fields})
    assert status == 400
    check(gateway, answer, said)
    assert answer["error"]["param"]


@pytest.mark.parametrize("content", BODIES, ids=lambda content: repr(content[:12]))
@pytest.mark.parametrize("route", VALID)
async def test_a_body_that_is_no_json_object(gateway: Setup, route: str, content: bytes) -> None:
    async with gateway.http.post(gateway.url + route, data=content) as response:
        assert response.status == 400
        check(gateway, await response.json(), "body")


async def test_a_body_that_is_too_large(gateway: Setup) -> None:
    content = io.BytesIO(json.dumps({"model": "a", "prompt": "x" * (65 * 2**20)}).encode())
    async with gateway.http.post(gateway.url + COMPLETIONS, data=content) as response:
        assert response.status == 413
        check(gateway, await response.json(), "too large")


@pytest.mark.parametrize("route", VALID)
@pytest.mark.parametrize("name", ["c", "", "A"])
async def test_an_unknown_model(gateway: Setup, route: str, name: str) -> None:
    status, answer = await gateway.post(route, {**VALID[route], "model": name})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    check(gateway, answer, "a, b")


@pytest.mark.parametrize("route", VALID)
async def test_an_unknown_model_in_the_path(gateway: Setup, route: str) -> None:
    status, answer = await gateway.post(f"/models/c{route}", VALID[route])
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    check(gateway, answer, "a, b")


@pytest.mark.parametrize("route", VALID)
async def test_path_and_body_name_different_models(gateway: Setup, route: str) -> None:
    status, answer = await gateway.post(f"/models/b{route}", VALID[route])
    assert (status, answer["error"]["code"]) == (400, "model_mismatch")
    check(gateway, answer, "'b'")


@pytest.mark.parametrize("route", VALID)
async def test_the_path_stands_above_a_name_that_is_none(gateway: Setup, route: str) -> None:
    """Load generators send a name of their own to a decoder's URL."""
    status, _ = await gateway.post(f"/models/b{route}", {**VALID[route], "model": "gpt-4"})
    assert status == 200
    (request,) = gateway.decode("b").requests
    assert request.get("model", "b") == "b"


@pytest.mark.parametrize("route", VALID)
async def test_no_model_among_several(gateway: Setup, route: str) -> None:
    status, answer = await gateway.post(route, {**VALID[route], "model": None})
    assert status == 400
    check(gateway, answer, "a, b")


async def test_only_decoders_are_models(gateway: Setup) -> None:
    status, _ = await gateway.post(COMPLETIONS, {"model": "base", "prompt": "x"})
    assert status == 404


@pytest.mark.parametrize(
    "fields",
    [
        {"logprob_start_len": -1},
        {"return_logprob": None, "logprob_start_len": 0},
        {"lora_path": None, "image_data": [], "return_hidden_states": False},
        {"lora_path": [None], "return_hidden_states": []},
        {"best_of": 1, "echo": None, "routed_experts_start_len": 0, "log_metrics": True},
        {"unknown_field": 5},
    ],
)
async def test_fields_without_effect_reach_no_engine(
    gateway: Setup, fields: dict[str, Any]
) -> None:
    status, _ = await gateway.post(GENERATE, {**VALID[GENERATE], **fields})
    assert status == 200
    assert not fields.keys() & gateway.decode().requests[0].keys()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v2/models", 404), ("GET", CHAT, 405), ("PUT", GENERATE, 405)],
)
async def test_no_such_route(gateway: Setup, method: str, path: str, status: int) -> None:
    async with gateway.http.request(method, gateway.url + path) as response:
        assert response.status == status
        check(gateway, await response.json(), path)


async def test_a_decoder_name_may_need_quoting() -> None:
    async with running(decoders=("a b:1", "ü")) as gateway:
        for quoted in ("a%20b%3A1", "%C3%BC"):
            status, _ = await gateway.post(f"/models/{quoted}/v1/completions", {"prompt": "x"})
            assert status == 200
