"""The client for workers against servers that answer, close, cut and stall byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from ps_sglang.gateway.dispatch.worker_client import WorkerClient
from ps_sglang.gateway.dispatch.worker_connection import UNREAD_BYTES
from ps_sglang.gateway.errors import Disconnected

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
Serve = Callable[[Reader, Writer], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Runs `serve` for each connection and counts them."""

    def __init__(self) -> None:
        self.url = ""
        self.connections = 0
        self.closed = asyncio.Event()


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[Server]:
    made = Server()

    async def run(reader: Reader, writer: Writer) -> None:
        made.connections += 1
        try:
            await serve(reader, writer)
        except ConnectionError:
            pass
        finally:
            made.closed.set()
            writer.close()

    server = await asyncio.start_server(run, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()


async def request(reader: Reader) -> bytes:
    """The head and body of the next request, b"" if there is none."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


@pytest.fixture
async def client() -> AsyncIterator[WorkerClient]:
    made = WorkerClient()
    yield made
    made.close()


async def ask(client: WorkerClient, server: Server) -> tuple[int, bytes]:
    with await client.post(server.url, "/generate", b"{}", {"Authorization": "Bearer x"}) as answer:
        return answer.status, await answer.read()


async def test_requests_share_a_connection(client: WorkerClient) -> None:
    seen = []

    async def serve(reader: Reader, writer: Writer) -> None:
        while one := await request(reader):
            seen.append(one)
            writer.write(OK)

    async with serving(serve) as server:
        answers = [await ask(client, server) for _ in range(3)]
        assert answers == [(200, b"ok")] * 3
        assert server.connections == 1
    host = server.url.removeprefix("http://").encode()
    assert seen[0] == (
        b"POST /generate HTTP/1.1\r\nHost: " + host + b"\r\nContent-Type: application/json\r\n"
        b"Content-Length: 2\r\nAuthorization: Bearer x\r\n\r\n{}"
    )


async def test_a_kept_connection_that_is_closed_is_replaced(client: WorkerClient) -> None:
    asked = asyncio.Event()

    async def serve(reader: Reader, writer: Writer) -> None:
        await request(reader)
        writer.write(OK)
        # Closes as a server does whose keep-alive time is over, having read the next request.
        if server.connections == 1:
            await request(reader)
            asked.set()

    async with serving(serve) as server:
        assert await ask(client, server) == (200, b"ok")
        assert await ask(client, server) == (200, b"ok")
        assert asked.is_set()
        assert server.connections == 2


async def test_a_new_connection_that_is_closed_fails(client: WorkerClient) -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        await request(reader)

    async with serving(serve) as server:
        with pytest.raises(Disconnected):
            await ask(client, server)
        assert server.connections == 1


async def test_an_answer_that_began_is_not_asked_for_again(client: WorkerClient) -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        await request(reader)
        writer.write(OK)
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nConte")
        await writer.drain()

    async with serving(serve) as server:
        assert await ask(client, server) == (200, b"ok")
        with pytest.raises(Disconnected):
            await ask(client, server)
        assert server.connections == 1


async def test_chunks_are_handed_on_as_they_come(client: WorkerClient) -> None:
    more = asyncio.Event()

    async def serve(reader: Reader, writer: Writer) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await more.wait()
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")
        await request(reader)

    async with serving(serve) as server:
        with await client.post(server.url, "/generate", b"{}") as answer:
            assert await answer.piece() == b"one"
            more.set()
            assert await answer.piece() == b"two"
            assert await answer.piece() == b""


@pytest.mark.parametrize(
    "cut",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf",
    ],
)
async def test_a_cut_answer_fails(client: WorkerClient, cut: bytes) -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        await request(reader)
        writer.write(cut)

    async with serving(serve) as server:
        with pytest.raises(Disconnected):
            await ask(client, server)


async def test_an_answer_without_a_length_ends_with_its_connection(client: WorkerClient) -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 500 Internal Server Error\r\n\r\nall of it")

    async with serving(serve) as server:
        assert await ask(client, server) == (500, b"all of it")
        assert await ask(client, server) == (500, b"all of it")
        assert server.connections == 2


async def test_what_is_no_http_fails(client: WorkerClient) -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        await request(reader)
        writer.write(b"+PONG\r\n")
        await request(reader)

    async with serving(serve) as server:
        with pytest.raises(Disconnected, match=r"HTTP/1\.1"):
            await ask(client, server)


async def test_giving_up_before_the_answer_closes_the_connection(client: WorkerClient) -> None:
    asked = asyncio.Event()

    async def serve(reader: Reader, writer: Writer) -> None:
        await request(reader)
        asked.set()
        await reader.read()

    async with serving(serve) as server:
        asking = asyncio.create_task(ask(client, server))
        await asked.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await server.closed.wait()


async def test_giving_up_amid_the_answer_closes_the_connection(client: WorkerClient) -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await reader.read()

    async with serving(serve) as server:
        with await client.post(server.url, "/generate", b"{}") as answer:
            assert await answer.piece() == b"half"
        await server.closed.wait()


async def test_a_stream_that_nobody_reads_stops_its_worker(client: WorkerClient) -> None:
    total = 256 * UNREAD_BYTES
    written = asyncio.Event()

    async def serve(reader: Reader, writer: Writer) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        writer.write(bytes(total))
        await writer.drain()
        written.set()
        await request(reader)

    async with serving(serve) as server:
        with await client.post(server.url, "/generate", b"{}") as answer:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(written.wait(), 0.3)
            size = 0
            while piece := await answer.piece():
                size += len(piece)
            assert size == total


async def test_nobody_listens(client: WorkerClient) -> None:
    async def serve(reader: Reader, writer: Writer) -> None: ...

    async with serving(serve) as server:
        pass
    with pytest.raises(ConnectionRefusedError):
        await ask(client, server)
