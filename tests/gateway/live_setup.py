"""Stand-in workers with a tree and things to tell of it, for the tests of what the page shows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from ps_sglang.events.messages import BlockStored, KvEventBatch, Span
from ps_sglang.gateway.state import GATEWAY, Gateway
from tests.gateway.gateway_setup import Setup, running
from tests.gateway.index_model import block_hash
from tests.gateway.tokenizer_kinds import byte_level
from tests.support.standin_engine import COMPLETIONS, Worker


def make_tokenizer(folder: Path) -> str:
    """A tokenizer whose chats are their messages' texts, a line each."""
    byte_level().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"
    )
    return str(folder)


class Shown:
    """A gateway, and what its workers tell it. `headers` are those of an admin."""

    def __init__(self, setup: Setup, headers: dict[str, str]) -> None:
        self.setup = setup
        self._headers = headers
        self._tokenizer = byte_level()

    @property
    def gateway(self) -> Gateway:
        return self.setup.app[GATEWAY]

    def tokens(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    async def store(self, worker: Worker, text: str, salt: str = "") -> int:
        """Have a worker tell that its tree holds a text; returns how many tokens that are."""
        ids = self.tokens(text)
        hashes = [block_hash((salt, tuple(ids[: end + 1]))) for end in range(len(ids))]
        assert worker.publisher is not None
        batch = KvEventBatch(0.0, [BlockStored(hashes, None, ids, 1, cache_salt=salt or None)])
        worker.publisher.publish(batch)
        prompt = self.gateway.cache_index.prompts.prompt(text, salt)
        while self.gateway.cache_index._index.match(prompt.text, salt).get(worker.name) is None:
            await self.live()
        return len(ids)

    async def turn(self, decoder: str, prompt: str, computed: int, **more: Any) -> None:
        """A decoder's turn for which so many tokens of the prompt were computed."""
        worker = self.setup.decode(decoder)
        before = len(worker.requests)
        base_prefix = len(self.tokens(prompt)) - 1
        asking = asyncio.create_task(
            self.setup.post(COMPLETIONS, {"model": decoder, "prompt": prompt, **more})
        )
        await worker.saw(before + 1)
        rid, found = worker.requests[-1]["rid"], base_prefix - computed
        tell(self.setup.prefill, rid, "prefill", computed=computed, held=found)
        tell(worker, rid, "decode", held=found, pulled=computed)
        status, _ = await asking
        assert status == 200
        await self.concluded()

    async def concluded(self) -> None:
        """Wait until all that has ended is counted."""
        while len(self.gateway.dispatcher._traces):
            await self.live()

    async def live(self) -> Any:
        url = self.setup.url + "/v1/live"
        async with self.setup.http.get(url, headers=self._headers) as response:
            assert response.status == 200
            return await response.json()


def tell(worker: Worker, rid: str, role: Literal["prefill", "decode"], **counts: int) -> None:
    """A worker's span of a request."""
    assert worker.publisher is not None
    worker.publisher.record(Span(rid=rid, role=role, began=1.0, **counts))


@asynccontextmanager
async def showing(
    folder: Path, headers: dict[str, str] | None = None, **shape: Any
) -> AsyncIterator[Shown]:
    """One prefill worker and decoders `a` and `b` whose events are heard."""
    async with running(events=True, tokenizer=make_tokenizer(folder), **shape) as setup:
        shown = Shown(setup, headers or {})
        index = shown.gateway.cache_index
        while not all(index.is_live(name) for name in index.workers):
            await shown.live()
        yield shown
