"""Requests that two servers would take apart differently: one reading, or none.

What stands behind the request in question would be a request of its own for whoever reads it
otherwise. Wherever the reading is in doubt, the gateway refuses and closes the connection.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from itertools import pairwise

import pytest

from ps_sglang.gateway.state import GATEWAY
from tests.gateway.gateway_setup import Setup

BODY = b'{"model":"a","prompt":"x"}'
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNK = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
SMUGGLED = b"POST /smuggled HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"


async def exchange(gateway: Setup, *parts: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each answer until the gateway closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    for part in parts:
        writer.write(part)
    answers = []
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            length = next(int(one[15:]) for one in lines if one.startswith(b"content-length:"))
            answers.append((int(head.split()[1]), await reader.readexactly(length)))
    except asyncio.IncompleteReadError:
        return answers
    finally:
        writer.close()


@pytest.mark.parametrize(
    "request_",
    [
        # Two lengths.
        POST + LENGTH + CHUNKED + b"\r\n0\r\n\r\n",
        POST + CHUNKED + LENGTH + b"\r\n" + CHUNK,
        POST + LENGTH + b"Content-Length: 3\r\n\r\n" + BODY,
        POST + LENGTH + LENGTH + b"\r\n" + BODY,
        POST + b"Content-Length: 26, 26\r\n\r\n" + BODY,
        POST + b"Content-Length: +26\r\n\r\n" + BODY,
        POST + b"Content-Length: 0x1a\r\n\r\n" + BODY,
        POST + b"Content-Length: 26 \x0b\r\n\r\n" + BODY,
        # Encodings that only some read.
        POST + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNK,
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNK,
        POST + b"Transfer-Encoding: gzip\r\n\r\n" + CHUNK,
        POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + CHUNK,
        POST + CHUNKED + CHUNKED + b"\r\n" + CHUNK,
        POST.replace(b"1.1", b"1.0") + CHUNKED + b"\r\n" + CHUNK,
        # Lines that only some take for lines.
        POST + b"X-A: b\r\n c\r\n" + LENGTH + b"\r\n" + BODY,
        POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + CHUNK,
        POST.replace(b"\r\n", b"\n") + LENGTH + b"\r\n" + BODY,
        POST + b"X-A: b\n" + LENGTH + b"\r\n" + BODY,
        POST + b"X-A: b\r" + CHUNKED + LENGTH + b"\r\n" + BODY,
        POST + b"X-A: b\x00" + LENGTH + b"\r\n" + BODY,
        # Names that only some know.
        POST + b"Content-Length : 26\r\n\r\n" + BODY,
        POST + b"Content_Length: 3\r\n" + b" Content-Length: 26\r\n\r\n" + BODY,
        POST + b"Host: y\r\n" + LENGTH + b"\r\n" + BODY,
        POST.replace(b"Host: x\r\n", b"") + LENGTH + b"\r\n" + BODY,
        # Chunks.
        POST + CHUNKED + b"\r\n" + CHUNK.replace(b"\r\n", b"\n", 1),
        POST + CHUNKED + b"\r\n0x" + CHUNK,
        POST + CHUNKED + b"\r\n-" + CHUNK,
        POST + CHUNKED + b"\r\nfffffffffffffffff" + CHUNK,
        POST + CHUNKED + b"\r\n" + CHUNK.replace(b"}\r\n0", b"}XX0"),
        POST + CHUNKED + b"\r\n" + CHUNK[:-2] + b"Content-Length: 5\r\n\r\n",
        # What is no HTTP/1.1.
        POST.replace(b"/1.1", b"/1.2") + LENGTH + b"\r\n" + BODY,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /v1/models /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_what_can_be_read_in_two_ways_is_refused(gateway: Setup, request_: bytes) -> None:
    answers = await exchange(gateway, request_ + SMUGGLED)
    assert [status for status, _ in answers] == [400]
    assert "not valid HTTP" in json.loads(answers[0][1])["error"]["message"]
    assert not gateway.prefill.requests


def split(content: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *places, len(content)]
    return [content[start:end] for start, end in pairwise(edges)]


LAST = b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("framing", [LENGTH + b"\r\n" + BODY, CHUNKED + b"\r\n" + CHUNK])
@pytest.mark.parametrize("places", [(), (1, 30), (60, 61, 62), (95, 110)])
async def test_requests_that_come_together_are_answered_in_order(
    gateway: Setup, framing: bytes, places: tuple[int, ...]
) -> None:
    """Pipelined, and cut wherever the network likes."""
    content = (POST + framing) * 3 + SMUGGLED + LAST
    answers = await exchange(gateway, *split(content, places))
    assert [status for status, _ in answers] == [200, 200, 200, 404, 200]
    assert len(gateway.decode().requests) == 3
    limiter = gateway.app[GATEWAY].limiter
    assert (limiter.total.requests, limiter.total.queued) == (0, 0)


async def test_a_body_is_no_request(gateway: Setup) -> None:
    """Of a GET, whose body nobody reads, and of a refused POST."""
    inside = b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED
    get = b"GET /ready HTTP/1.1\r\nHost: x\r\n" + inside
    post = b"POST /nothing HTTP/1.1\r\nHost: x\r\n" + inside
    assert [status for status, _ in await exchange(gateway, get + LAST)] == [200, 200]
    answers = await exchange(gateway, post + LAST)
    assert [b"/nothing" in body for _, body in answers if b"There is no" in body] == [True]
