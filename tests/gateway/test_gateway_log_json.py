"""The log as JSON: an object a line, whatever a client sends."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ps_sglang.gateway.config import LogFormat
from ps_sglang.gateway.telemetry.log import FORMATTERS, BufferedHandler, about, line_of
from tests.gateway.gateway_setup import Setup

BODY = {"model": "a", "prompt": "x"}
BREAKS = "a\nb\r\x85\u2028\x1b[2K{}"
Objects = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def objects(caplog: pytest.LogCaptureFixture) -> Iterator[Objects]:
    stream = io.StringIO()
    handler = BufferedHandler(stream)
    handler.setFormatter(FORMATTERS[LogFormat.JSON]())
    handler.addFilter(lambda record: record.name != "aiohttp.access")  # of stand-in engines
    caplog.set_level(logging.INFO)
    root = logging.getLogger()
    root.addHandler(handler)

    def read() -> list[dict[str, Any]]:
        handler.flush()
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    yield read
    root.removeHandler(handler)


async def test_a_request(gateway: Setup, objects: Objects) -> None:
    await gateway.post("/v1/completions", BODY, headers={"x-request-id": "mine"})
    (line,) = objects()
    assert line["level"] == "INFO"
    assert line["logger"] == "ps_sglang.gateway"
    assert line["request_id"] == "mine"
    assert line["message"] == "answered"
    assert (line["model"], line["route"], line["status"]) == ("a", "/v1/completions", 200)
    assert "error" not in line


@pytest.mark.parametrize("field", ["model", "rid", "session_id"])
async def test_what_a_client_sends_stays_in_its_field(
    gateway: Setup, objects: Objects, field: str
) -> None:
    await gateway.post("/v1/completions", {**BODY, field: BREAKS})
    (line,) = objects()
    assert line["message"] == "answered"


def test_a_traceback_is_a_field(objects: Objects) -> None:
    try:
        raise ValueError(BREAKS)
    except ValueError:
        with about("mine"):
            logging.getLogger("ps_sglang.gateway").exception("it failed")
    (line,) = objects()
    assert line["message"] == "it failed"
    assert line["request_id"] == "mine"
    assert line["exception"].startswith("Traceback")
    assert BREAKS in line["exception"]


def test_a_line_that_is_no_record() -> None:
    assert line_of(LogFormat.TEXT, "ready") == "ready"
    line = json.loads(line_of(LogFormat.JSON, "ready\nnow", level="ERROR", logger="x"))
    assert (line["level"], line["logger"], line["message"]) == ("ERROR", "x", "ready\nnow")
