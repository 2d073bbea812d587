"""A log has one line for each thing that happened, and a client cannot write another one."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from ps_sglang.gateway.config import LogFormat
from ps_sglang.gateway.telemetry.log import FORMATTERS, BufferedHandler
from tests.gateway.gateway_setup import Setup, running
from tests.support.standin_engine import Plan

FORGED = "2026-01-01 00:00:00,000 ps_sglang.gateway forged"
BREAKS = {
    "line feed": "\n",
    "carriage return": "\r",
    "both": "\r\n",
    "vertical tab": "\x0b",
    "form feed": "\x0c",
    "separators": "\x1c\x1d\x1e",
    "next line": "\x85",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "escape": "\x1b[2K\x1b[1A",
    "right to left": "\u202e",
    "nul": "\x00",
}
each_break = pytest.mark.parametrize("between", BREAKS.values(), ids=BREAKS)
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [a-z_.]+ \S.*")


class Log:
    """What the process would write to stderr."""

    def __init__(self, stream: io.StringIO, handler: BufferedHandler) -> None:
        self._stream, self._handler = stream, handler

    def lines(self) -> list[str]:
        """All lines so far, each checked to be one that the gateway began."""
        self._handler.flush()
        text = self._stream.getvalue()
        # As `str` and terminals take them apart, not only at line feeds.
        lines = text.splitlines()
        assert lines == text.split("\n")[:-1]
        for line in lines:
            assert line.isprintable(), line
            assert line.startswith("  | ") or LINE.fullmatch(line), line
            assert not line.startswith(FORGED)
        return lines


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Log]:
    stream = io.StringIO()
    handler = BufferedHandler(stream)
    handler.setFormatter(FORMATTERS[LogFormat.TEXT]())
    root = logging.getLogger()
    # The stand-in engines run in the same process.
    handler.addFilter(lambda record: record.name != "aiohttp.access")
    caplog.set_level(logging.INFO)
    root.addHandler(handler)
    yield Log(stream, handler)
    root.removeHandler(handler)


def evil(between: str) -> str:
    return f"x{between}{FORGED}"


def fields(line: str) -> dict[str, str]:
    """The `key=value` words of a request's line before its error."""
    words = line.partition(" error=")[0].split()
    return dict(word.split("=", 1) for word in words if "=" in word)


async def raw(gateway: Setup, *lines: str, body: bytes = b"") -> bytes:
    """The answer to a request whose bytes are exactly these."""
    port = int(gateway.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = [*lines, f"Content-Length: {len(body)}", "Host: x", "Connection: close", "", ""]
    writer.write("\r\n".join(head).encode() + body)
    answer = await reader.read()
    writer.close()
    return answer


@each_break
@pytest.mark.parametrize(
    "header",
    ["X-Request-Id", "Authorization", "X-Api-Key", "X-Session-Id", "Content-Encoding", "Expect"],
)
async def test_headers(gateway: Setup, log: Log, header: str, between: str) -> None:
    body = json.dumps({"model": "a", "prompt": "x"}).encode()
    value = f"{header}: {evil(between)}"
    await raw(gateway, "POST /v1/completions HTTP/1.1", value, body=body)
    log.lines()


@each_break
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_paths(gateway: Setup, log: Log, method: str, between: str) -> None:
    place = quote(evil(between), safe="")
    await raw(gateway, f"{method} /{place} HTTP/1.1")
    await raw(gateway, f"{method} /models/{place}/v1/completions?model={place} HTTP/1.1")
    await raw(gateway, f"{method} /{evil(between)} HTTP/1.1")
    assert len(log.lines()) == 3


@each_break
@pytest.mark.parametrize("field", ["model", "rid", "session_id", "user", "prompt", "cache_salt"])
async def test_fields(gateway: Setup, log: Log, field: str, between: str) -> None:
    for path in ("/v1/completions", "/v1/nothing"):
        await gateway.post(path, {"model": "a", "prompt": "x", field: evil(between)})
    assert len(log.lines()) == 2


@each_break
@pytest.mark.parametrize("field", ["model", "max_tokens", "stop_sequences", "metadata", "system"])
async def test_fields_of_messages(gateway: Setup, log: Log, field: str, between: str) -> None:
    body: dict[str, Any] = {"model": "a", "max_tokens": 1}
    body["messages"] = [{"role": "user", "content": "x"}]
    await gateway.post("/v1/messages", {**body, field: evil(between)})
    assert len(log.lines()) == 1


@each_break
async def test_what_a_worker_repeats(log: Log, between: str) -> None:
    """An engine's error often holds what the client sent."""
    text = evil(between)
    async with running(prefill=2, decoders=("a",)) as gateway:
        for plan in (
            Plan(refuse=(400, {"error": {"message": text}})),
            Plan(refuse=(500, {"object": "error", "message": text})),
            Plan(abort={"type": "abort", "message": text, "status_code": 503}),
        ):
            for worker in gateway.cluster.workers:
                worker.plan = plan
            for stream in (False, True):
                body = {"model": "a", "text": "x", "stream": stream}
                async with gateway.http.post(gateway.url + "/generate", json=body) as response:
                    await response.read()
    assert len(log.lines()) >= 6


@each_break
async def test_the_names_of_workers_that_join(gateway: Setup, log: Log, between: str) -> None:
    """By whoever may say so, with a name that is none."""
    for body in ({"url": evil(between)}, {"url": "http://127.0.0.1:1", "name": evil(between)}):
        await gateway.post("/workers", body)
    await raw(gateway, f"DELETE /workers/{quote(evil(between), safe='')} HTTP/1.1")
    await gateway.post("/decoders", {"name": evil(between), "path": evil(between)})
    log.lines()


@each_break
def test_a_traceback_is_the_gateways(log: Log, between: str) -> None:
    """An exception's text may be a client's."""
    try:
        raise ValueError(evil(between))
    except ValueError:
        logging.getLogger("ps_sglang.gateway").exception("it failed on %s", evil(between))
    first, *others = log.lines()
    assert "it failed on x" in first
    assert {line[:4] for line in others} == {"  | "}


def test_half_a_character_is_written_too(log: Log) -> None:
    """No stream could encode it: the whole line would be lost, and those beside it."""
    logging.getLogger("ps_sglang.gateway").info("a %s b", chr(0xD800))
    (line,) = log.lines()
    assert line.endswith(r"a \ud800 b")


@pytest.mark.parametrize(
    ("header", "path", "rid"),
    [
        ("mine status=200 ms=1", "/v1/completions", "x"),
        ("mine", "/v1/completions", "x model=root status=200"),
        ("mine", "/nothing%20status=200%20ms=1", "x"),
    ],
)
async def test_no_value_brings_in_a_field(
    gateway: Setup, log: Log, header: str, path: str, rid: str
) -> None:
    body = json.dumps({"model": "a", "prompt": "x", "rid": rid}).encode()
    await raw(gateway, f"POST {path} HTTP/1.1", f"X-Request-Id: {header}", body=body)
    (line,) = log.lines()
    assert fields(line)["status"] in ("200", "404")
    assert line.partition(" error=")[0].count(" status=") == 1
    assert list(fields(line)) == ["rid", "model", "route", "status", "ms"]


async def test_what_is_printable_stays_as_it_is(gateway: Setup, log: Log) -> None:
    status, _ = await gateway.post("/v1/completions", {"model": "größe-模型", "prompt": "x"})
    (line,) = log.lines()
    assert status == 404
    assert "größe-模型" in line
