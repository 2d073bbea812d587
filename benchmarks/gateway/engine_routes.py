"""What stand-in prefill and decode workers have in common: routes, tokenizer, tree."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.gateway.events import Change, Feed, NoFeed
from benchmarks.gateway.messages import CHAT, COMPLETIONS, GENERATE, Body, EngineConfig, Totals
from benchmarks.gateway.tree import PageTree, page_hashes
from benchmarks.gateway.vocabulary import WordTokenizer
from benchmarks.gateway.wire import Exchange
from ps_sglang.worker_info import KEY, WorkerInfo

_HEALTH: Final = frozenset(("/health", "/health_generate", "/ready"))

_BODY: Final = msgspec.json.Decoder(Body)


class Engine:
    """Answers all routes; what a request for an answer does is up to the role."""

    def __init__(self, config: EngineConfig, events: Feed | NoFeed) -> None:
        self.config, self.events = config, events
        self.tree = PageTree(config.pool_tokens // config.page_size)
        self.totals = Totals()
        self._tokenizer = WordTokenizer(Path(config.tokenizer))
        self._running: dict[asyncio.Task[Any], str] = {}
        self.bootstrap_port: int | None = None  # of a prefill worker

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
            self._forget(int(exchange.body or self.config.pool_tokens))
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
            return self._tokenizer.encode_chat(body.messages)
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
            self.events.changed(Change(gone, new, parent, content, body.salt))
        finally:
            self.tree.unlock(pages[:locked])

    def _forget(self, pool_tokens: int) -> None:
        self.tree.clear()
        self.tree.capacity = pool_tokens // self.config.page_size
        self.events.cleared()
        self.totals = Totals()

    def _abort(self, rid: str) -> None:
        for task, known in list(self._running.items()):
            if known.startswith(rid):
                task.cancel()

    def _facts(self) -> WorkerInfo:
        decoder = self.config.decoder
        return WorkerInfo(
            incarnation=self.events.incarnation,
            role="prefill" if decoder is None else "decode",
            model=decoder or "base",
            capacity=self.config.pool_tokens,
            bootstrap_port=self.bootstrap_port,
            events=self.events.endpoint or None,
            events_control=self.events.control or None,
        )

    def _inform(self, exchange: Exchange) -> None:
        known: dict[str, Any] = {
            "/get_model_info": {"model_path": "/models/base", "is_generation": True},
            "/get_server_info": {"max_running_requests": 1024, "page_size": self.config.page_size},
            "/v1/models": {"object": "list", "data": [{"id": "base", "object": "model"}]},
            "/get_load": [{"num_reqs": len(self._running), "num_waiting_reqs": 0}],
        }
        known["/model_info"] = known["/get_model_info"]
        known["/server_info"] = {**known["/get_server_info"], KEY: self._facts()}
        content = known.get(exchange.path)
        exchange.answer(msgspec.json.encode(content), 404 if content is None else 200)
