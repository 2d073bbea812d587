"""What HTTP itself can have wrong: each is told in OpenAI's format, with the right status."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.gateway.gateway_setup import Setup

BODY = b'{"model":"a","prompt":"x"}'
POST = "POST /v1/completions"


async def exchange(gateway: Setup, content: bytes) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of the answer to a raw request."""
    port = int(gateway.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(content)
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    status, *lines = head.split("\r\n")
    headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines if line)}
    answer = await reader.readexactly(int(headers.get("content-length", 0)))
    writer.close()
    return int(status.split()[1]), headers, json.loads(answer) if answer else None


def raw(first: str = POST, *headers: str, body: bytes = BODY, length: str | None = None) -> bytes:
    lines = [f"{first} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        (raw(POST, "Content-Encoding: gzip"), 400, "not what its content-encoding says"),
        (raw(POST, "Content-Encoding: deflate"), 400, "not what its content-encoding says"),
        (
            raw(POST, "Content-Encoding: deflate", body=zlib.compress(BODY)[:12]),
            400,
            "not what its content-encoding says",
        ),
        (raw(POST, "Content-Encoding: gzip", body=gzip.compress(BODY)[:20]), 400, "JSON"),
        (raw(POST, "Content-Encoding: br"), 400, "neither gzip nor deflate"),
        (raw(POST, "Content-Encoding: zstd"), 400, "neither gzip nor deflate"),
        (raw(POST, "Content-Encoding: banana"), 400, "content-encoding 'banana' is not supported"),
        (raw(POST, "Content-Encoding: gzip, gzip"), 400, "'gzip, gzip' is not supported"),
        (raw(POST, f"X-A: {'a' * 9000}"), 431, "a line may have 8190 bytes"),
        (raw(f"POST /v1/{'a' * 9000}"), 431, "a line may have 8190 bytes"),
        (raw(POST, *(f"X-{i}: a" for i in range(200))), 431, "Too many headers"),
        (raw(POST, *(f"X-{i}: {'a' * 8000}" for i in range(9))), 431, "at most 65536 are allowed"),
        (raw(length="banana"), 400, "Invalid character in Content-Length"),
        (raw(length="-5"), 400, "Invalid character in Content-Length"),
        (raw(POST, "Content-Length: 4"), 400, "Duplicate Content-Length"),
        (raw(POST, "Transfer-Encoding: chunked"), 400, "Content-Length can't be present with"),
        (raw(POST, "Bad Name: 1"), 400, "Invalid header token"),
        (raw("BANANA /v1/completions"), 400, "Invalid method"),
        (raw(POST, "Expect: banana"), 417, "Unknown Expect: banana"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "HTTPS traffic on an HTTP port"),
        (raw("POST /v1/nothing"), 404, "There is no '/v1/nothing' here"),
        (raw("OPTIONS *", body=b""), 404, "There is no '*' here"),
        (raw("POST /models/z/v1/completions"), 404, "The model 'z' does not exist"),
    ],
)
async def test_a_bad_request_is_told_as_openai_does(
    gateway: Setup, request_: bytes, status: int, reason: str
) -> None:
    found, headers, answer = await exchange(gateway, request_)
    assert found == status
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    assert reason in answer["error"]["message"]
    assert "\n" not in answer["error"]["message"]
    assert headers["content-type"].startswith("application/json")
    assert not gateway.prefill.requests


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "identity"])
async def test_a_packed_body_is_unpacked(gateway: Setup, encoding: str) -> None:
    packs: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}
    pack = packs.get(encoding.lower(), bytes)
    content = raw(POST, f"Content-Encoding: {encoding}", body=pack(BODY))
    assert (await exchange(gateway, content))[0] == 200


async def test_a_secret_in_a_header_is_neither_told_nor_logged(
    gateway: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    _, _, answer = await exchange(gateway, raw(POST, f"Authorization: Bearer {'s3cret' * 2000}"))
    assert "s3cret" not in json.dumps(answer) + caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("first", "allowed"),
    [
        ("GET /v1/completions", "POST"),
        ("PUT /v1/chat/completions", "POST"),
        ("OPTIONS /generate", "POST"),
        ("HEAD /models/a/generate", "POST"),
        ("DELETE /v1/models", "GET,HEAD"),
        ("DELETE /flush_cache", "GET,HEAD,POST"),
    ],
)
async def test_a_method_that_a_path_does_not_take(gateway: Setup, first: str, allowed: str) -> None:
    content = raw(first, body=b"")
    port = int(gateway.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(content)
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    writer.close()
    assert head.startswith("HTTP/1.1 405 ")
    assert f"\r\nAllow: {allowed}\r\n" in head
