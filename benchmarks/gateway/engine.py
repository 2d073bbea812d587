"""A stand-in engine: one process that speaks SGLang's PD protocol, with a KV tree and a clock.

    python -m benchmarks.gateway.engine '<EngineConfig as JSON>'

It prints `ready <HTTP port> <bootstrap port> <feed> <control>` once it listens; what it does not
have is 0 or `-`. What takes time in an engine takes the time of `Pace` here, by the clock;
a prefill worker computes one prompt at a time. A decode worker asks the prefill worker's bootstrap
port for its room and goes on when the prompt is there. Both hold base prefixes only: all tokens of
a prompt but the last.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
import time
from collections import defaultdict

import msgspec
import uvloop

from benchmarks.gateway.answers import Answer
from benchmarks.gateway.engine_routes import Engine
from benchmarks.gateway.events import Feed, NoFeed
from benchmarks.gateway.messages import Body, EngineConfig
from benchmarks.gateway.vocabulary import words
from benchmarks.gateway.wire import Exchange, HttpProtocol
from ps_sglang.events.messages import Span


class PrefillEngine(Engine):
    """Computes prompts, one at a time, each when the decode worker has asked for it."""

    def __init__(self, config: EngineConfig, events: Feed | NoFeed) -> None:
        super().__init__(config, events)
        self._turn = asyncio.Lock()
        self._asked: defaultdict[int, asyncio.Future[asyncio.StreamWriter]] = defaultdict(
            asyncio.get_running_loop().create_future
        )

    async def serve_rooms(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The bootstrap server: a decode worker names the rooms that it waits for."""
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                future = self._asked[int(line)]
                if not future.done():
                    future.set_result(writer)
        writer.close()

    async def generate(self, exchange: Exchange, body: Body) -> None:
        """The prefill leg."""
        tokens = self.tokens(exchange.path, body)
        pages = self.pages(body, tokens)
        room = body.bootstrap_room
        try:
            decode = await self._asked[room]
            held = await self.compute(body, tokens, pages)
        finally:
            del self._asked[room]
        decode.write(b"%d\n" % room)
        exchange.answer(Answer(exchange.path, body, len(tokens), held, []).whole())

    async def compute(self, body: Body, tokens: list[int], pages: list[int]) -> int:
        """Prefill a prompt when all before it are done; returns how many tokens were held."""
        size, totals = self.config.page_size, self.totals
        began = time.time()
        async with self._turn:
            queue = time.time() - began
            held = self.tree.match(pages)
            async with self.hold(body, tokens, pages, held):
                new = len(tokens) - 1 - held * size
                seconds = new * self.config.pace.prefill_token
                if seconds:
                    await asyncio.sleep(seconds)
        totals.requests += 1
        totals.prompt_tokens += len(tokens) - 1
        totals.cached_tokens += held * size
        totals.computed_tokens += new
        totals.busy_seconds += seconds
        self.events.record(
            Span(
                rid=body.rid,
                role="prefill",
                began=began,
                queue=queue,
                prefill=seconds,
                computed=new,
                held=held * size,
            )
        )
        return held * size


class DecodeEngine(Engine):
    """Pulls what it lacks of a prompt, then writes words that depend on prompt and decoder."""

    def __init__(self, config: EngineConfig, events: Feed | NoFeed) -> None:
        super().__init__(config, events)
        self._words = [" " + word for word in words()]
        self._rooms: dict[int, asyncio.Future[None]] = {}
        self._links: dict[tuple[str, int], asyncio.Task[asyncio.StreamWriter]] = {}
        self._readers: set[asyncio.Task[None]] = set()

    async def generate(self, exchange: Exchange, body: Body) -> None:
        """The decode leg."""
        began = time.time()
        tokens = self.tokens(exchange.path, body)
        pages = self.pages(body, tokens)
        pace, size = self.config.pace, self.config.page_size
        await self._prefilled(body)
        held = self.tree.match(pages)
        async with self.hold(body, tokens, pages, held):
            moved = len(tokens) - 1 - held * size
            self.totals.moved_tokens += moved
            if pace.moved_token:
                await asyncio.sleep(moved * pace.moved_token)
        self.totals.requests += 1
        self.totals.prompt_tokens += len(tokens) - 1
        self.totals.cached_tokens += held * size
        said = self._say(pages, body.output_tokens)
        answer = Answer(exchange.path, body, len(tokens), held * size, said)
        landed = time.time()
        await self._answer(exchange, answer, len(said), body.stream or False)
        self.events.record(
            Span(
                rid=body.rid,
                role="decode",
                began=began,
                pull=landed - began,
                decode=time.time() - landed,
                held=held * size,
                pulled=moved,
            )
        )

    async def _answer(self, exchange: Exchange, answer: Answer, length: int, stream: bool) -> None:
        pace = self.config.pace
        if not stream:
            if pace.decode_token:
                await asyncio.sleep(length * pace.decode_token)
            exchange.answer(answer.whole())
            return
        step = self.config.stream_tokens
        exchange.stream(answer.opening())
        for start in range(0, length, step):
            # Also without a pace: each step of an engine is a write of its own.
            await asyncio.sleep(step * pace.decode_token)
            exchange.write(answer.part(start, start + step))
        exchange.end(answer.closing())

    def _say(self, pages: list[int], count: int) -> list[str]:
        source = random.Random(f"{self.config.decoder} {pages[-1] if pages else 0}")
        return source.choices(self._words, k=count)

    async def _prefilled(self, body: Body) -> None:
        room = body.bootstrap_room
        future = self._rooms[room] = asyncio.get_running_loop().create_future()
        try:
            writer = await self._link(body.bootstrap_host, body.bootstrap_port)
            writer.write(b"%d\n" % room)
            await future
        finally:
            del self._rooms[room]

    async def _link(self, host: str, port: int) -> asyncio.StreamWriter:
        key = (host, port)
        if key not in self._links:
            self._links[key] = asyncio.create_task(self._connect(host, port))
        return await asyncio.shield(self._links[key])

    async def _connect(self, host: str, port: int) -> asyncio.StreamWriter:
        reader, writer = await asyncio.open_connection(host, port)
        self._readers.add(asyncio.create_task(self._listen(reader)))
        return writer

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            future = self._rooms.get(int(line))
            if future is not None and not future.done():
                future.set_result(None)


async def serve(config: EngineConfig) -> None:
    """Serve until SIGTERM."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    events = Feed(config.page_size) if config.events else NoFeed()
    engine: Engine
    bootstrap = 0
    if config.decoder is None:
        engine = prefill = PrefillEngine(config, events)
        rooms = await asyncio.start_server(prefill.serve_rooms, "127.0.0.1", 0)
        bootstrap = engine.bootstrap_port = rooms.sockets[0].getsockname()[1]
    else:
        engine = DecodeEngine(config, events)
    server = await loop.create_server(
        lambda: HttpProtocol(engine.handle, events.incarnation), "127.0.0.1", 0
    )
    port = server.sockets[0].getsockname()[1]
    print("ready", port, bootstrap, events.endpoint or "-", events.control or "-", flush=True)
    await stop.wait()
    events.close()


def main() -> None:
    """Entry point."""
    uvloop.run(serve(msgspec.json.decode(sys.argv[1], type=EngineConfig)))


if __name__ == "__main__":
    main()
