"""Requests with every kind of value in every field: each is answered, or refused with a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.gateway.gateway_setup import Setup, running
from tests.support.hostile_requests import request
from tests.support.standin_engine import CONTEXT_LENGTH, VOCABULARY

COUNT = 3000


def assert_told(status: int, answer: str, streamed: bool) -> None:
    """An answer, or a refusal with its reason in OpenAI's format."""
    if status == 200:
        assert not streamed or answer.endswith("data: [DONE]\n\n")
        return
    assert 400 <= status < 500, (status, answer)
    error: dict[str, Any] = json.loads(answer)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) > 10


async def answered(gateway: Setup, seed: int) -> int:
    route, body = request(seed, VOCABULARY, CONTEXT_LENGTH)
    content = json.dumps({"model": "a", **body})
    headers = {"content-type": "application/json"}
    async with gateway.http.post(gateway.url + route, data=content, headers=headers) as response:
        assert_told(response.status, await response.text(), bool(body.get("stream")))
        return response.status


@pytest.mark.parametrize("part", range(4))
async def test_every_request_is_answered_or_refused(part: int) -> None:
    async with running(prefill=2, decoders=("a",), replicas=2) as gateway:
        seen = [await answered(gateway, seed) for seed in range(part, COUNT, 4)]
        assert gateway.pending() == 0
    # Neither all nothing but refusals, nor nothing refused.
    assert 0.2 < seen.count(200) / len(seen) < 0.8
