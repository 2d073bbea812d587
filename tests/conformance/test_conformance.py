"""The gateway keeps to its own OpenAPI document, whatever it is sent.

CONFORMANCE_REQUESTS says how many requests are sent at least (a few hundred if it is not set),
CONFORMANCE_SEED which. The bar of a release is 10,000.
"""

from __future__ import annotations

import asyncio
import logging
import os

import pytest

from tests.conformance.drive import drive
from tests.gateway.gateway_setup import running

COUNT = int(os.environ.get("CONFORMANCE_REQUESTS", "400"))
SEED = int(os.environ.get("CONFORMANCE_SEED", "0"))


@pytest.mark.timeout(120 + COUNT)
async def test_the_gateway_keeps_to_its_document(caplog: pytest.LogCaptureFixture) -> None:
    async with running(prefill=2, decoders=("a",), replicas=2, adapters={"l": "/l"}) as gateway:
        report = await asyncio.to_thread(drive, gateway.url, COUNT, SEED)
        assert gateway.pending() == 0
        body = {"model": "a", "prompt": "x y", "max_tokens": 2, "seed": 7}
        status, answer = await gateway.post("/v1/completions", body)
    print(report)
    assert not report.faults, str(report)
    assert not [one for one in caplog.records if one.exc_info or one.levelno >= logging.ERROR]
    assert (status, answer["choices"][0]["text"]) == (200, "a-7-0 a-7-1 ")
    # Neither nearly all nothing but refusals, nor hardly any.
    succeeded = report.statuses[200] / report.statuses.total()
    assert 0.15 < succeeded < 0.7, str(report)
