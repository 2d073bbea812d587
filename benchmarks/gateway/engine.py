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
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec
import uvloop

from benchmarks.gateway.answers import Answer
from benchmarks.gateway.feed import Feed, NoFeed
from benchmarks.gateway.messages import CHAT, COMPLETIONS, GENERATE, Body, EngineConfig, Totals
from benchmarks.gateway.tree import PageTree, page_hashes
from benchmarks.gateway.vocabulary import WordTokenizer, render, words
from benchmarks.gateway.wire import Exchange, HttpProtocol

_HEALTH: Final = frozenset(("/health", "/health_generate", "/ready"))

_BODY: Final = msgspec.json.Decoder(Body)


class Engine:
    """What prefill and decode workers have in common: routes, tokenizer, tree."""

    def __init__(self, config: EngineConfig, feed: Feed | NoFeed) -> None:
        self.config, self.feed = config, feed
        self.tree = PageTree(config.pool_tokens // config.page_size)
        self.totals = Totals()
        self._tokenizer = WordTokenizer(Path(config.tokenizer))
        self._running: dict[asyncio.Task[Any], str] = {}

    async def handle(self, exchange: Exchange) -> None:
        """Answer one HTTP request."""
        path = exchange.path
        if path in (CHAT, COMPLETIONS, GENERATE):
            body = _BODY.decode(exchange.body)
            task = asyncio.current_task()
            assert task is not None
            self._running[task] = body.rid
            try:
                await self.generate(exchange, body)
            finally:
                del self._running[task]
        elif path == "/match":
            body = _BODY.decode(exchange.body)
            held = self.tree.match(self.pages(body, self.tokens(path, body)))
            exchange.answer(b"%d" % (held * self.config.page_size))
        elif path == "/totals":
            exchange.answer(msgspec.json.encode(self.totals))
        elif path == "/forget":
            self.tree.clear()
            self.feed.cleared()
            self.totals = Totals()
            exchange.answer(b"{}")
        elif path == "/abort_request":
            self._abort(msgspec.json.decode(exchange.body)["rid"])
            exchange.answer(b"{}")
        elif path in _HEALTH:
            exchange.answer(b"", kind=b"text/plain")
        else:
            self._inform(exchange)

    async def generate(self, exchange: Exchange, body: Body) -> None:
        """One leg of a request."""
        raise NotImplementedError

    def tokens(self, path: str, body: Body) -> list[int]:
        """The prompt's token ids."""
        if body.messages:
            return self._tokenizer.encode(render(body.messages))
        prompt = body.input_ids or body.prompt or body.text
        return self._tokenizer.encode(prompt) if isinstance(prompt, str) else prompt

    def pages(self, body: Body, tokens: list[int]) -> list[int]:
        """The pages of the prompt's base prefix."""
        return page_hashes(tokens[:-1], body.salt, self.config.page_size)

    @contextlib.asynccontextmanager
    async def hold(
        self, body: Body, tokens: list[int], pages: list[int], held: int
    ) -> AsyncIterator[None]:
        """Keep the first `held` pages of a prompt; at the end of the block, store the others."""
        locked = held
        self.tree.lock(pages[:held])
        try:
            yield
            held = self.tree.match(pages)  # another request may have stored some meanwhile
            self.tree.lock(pages[locked:held])
            locked, new = held, pages[held:]
            gone = self.tree.make_room(len(new))
            self.tree.add(new)
            locked = len(pages)
            size = self.config.page_size
            self.totals.evicted_tokens += len(gone) * size
            parent = pages[held - 1] if held else None
            content = tokens[held * size : len(pages) * size]
            self.feed.changed(gone, new, parent, content, body.salt)
        finally:
            self.tree.unlock(pages[:locked])

    def _abort(self, rid: str) -> None:
        for task, known in list(self._running.items()):
            if known.startswith(rid):
                task.cancel()

    def _inform(self, exchange: Exchange) -> None:
        known: dict[str, Any] = {
            "/get_model_info": {"model_path": "/models/base", "is_generation": True},
            "/get_server_info": {"max_running_requests": 1024, "page_size": self.config.page_size},
            "/v1/models": {"object": "list", "data": [{"id": "base", "object": "model"}]},
            "/get_load": [{"num_reqs": len(self._running), "num_waiting_reqs": 0}],
        }
        known["/model_info"] = known["/get_model_info"]
        known["/server_info"] = known["/get_server_info"]
        content = known.get(exchange.path)
        exchange.answer(msgspec.json.encode(content), 404 if content is None else 200)


class PrefillEngine(Engine):
    """Computes prompts, one at a time, each when the decode worker has asked for it."""

    def __init__(self, config: EngineConfig, feed: Feed | NoFeed) -> None:
        super().__init__(config, feed)
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
            held = await self._compute(body, tokens, pages)
        finally:
            del self._asked[room]
        decode.write(b"%d\n" % room)
        size = self.config.page_size
        self.totals.requests += 1
        self.totals.prompt_tokens += len(tokens) - 1
        self.totals.cached_tokens += held * size
        self.totals.computed_tokens += len(tokens) - 1 - held * size
        exchange.answer(Answer(exchange.path, body, len(tokens), held * size, []).whole())

    async def _compute(self, body: Body, tokens: list[int], pages: list[int]) -> int:
        async with self._turn:
            held = self.tree.match(pages)
            async with self.hold(body, tokens, pages, held):
                new = len(tokens) - 1 - held * self.config.page_size
                seconds = new * self.config.pace.prefill_token
                self.totals.busy_seconds += seconds
                if seconds:
                    await asyncio.sleep(seconds)
            return held


class DecodeEngine(Engine):
    """Pulls what it lacks of a prompt, then writes words that depend on prompt and decoder."""

    def __init__(self, config: EngineConfig, feed: Feed | NoFeed) -> None:
        super().__init__(config, feed)
        self._words = [" " + word for word in words()]
        self._rooms: dict[int, asyncio.Future[None]] = {}
        self._links: dict[tuple[str, int], asyncio.Task[asyncio.StreamWriter]] = {}
        self._readers: set[asyncio.Task[None]] = set()

    async def generate(self, exchange: Exchange, body: Body) -> None:
        """The decode leg."""
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
        if not body.stream:
            if pace.decode_token:
                await asyncio.sleep(len(said) * pace.decode_token)
            exchange.answer(answer.whole())
            return
        step = self.config.stream_tokens
        exchange.stream(answer.opening())
        for start in range(0, len(said), step):
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
    feed = Feed(config.page_size) if config.events else NoFeed()
    engine: Engine
    bootstrap = 0
    if config.decoder is None:
        engine = prefill = PrefillEngine(config, feed)
        rooms = await asyncio.start_server(prefill.serve_rooms, "127.0.0.1", 0)
        bootstrap = rooms.sockets[0].getsockname()[1]
    else:
        engine = DecodeEngine(config, feed)
    server = await loop.create_server(lambda: HttpProtocol(engine.handle), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    print("ready", port, bootstrap, feed.endpoint or "-", feed.control or "-", flush=True)
    await stop.wait()
    feed.close()


def main() -> None:
    """Entry point."""
    uvloop.run(serve(msgspec.json.decode(sys.argv[1], type=EngineConfig)))


if __name__ == "__main__":
    main()
