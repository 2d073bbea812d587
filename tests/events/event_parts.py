"""A worker's tree that publishes, a relay that loses messages, and a listener that mirrors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import zmq
import zmq.asyncio

from ps_sglang.events.control import EventStreamError
from ps_sglang.events.messages import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KvEvent,
    KvEventBatch,
    Snapshot,
    Span,
)
from ps_sglang.events.publisher import Command, WorkerEventPublisher

Frames = list[bytes]


def stored(block: int, parent: int | None) -> BlockStored:
    """A block of one token, whose id is the block's hash."""
    return BlockStored([block], parent, [block], 1)


class Tree:
    """A tree of blocks that publishes what happens to it. For the event loop's thread."""

    def __init__(self, **options: object) -> None:
        self.publisher = WorkerEventPublisher(**options)  # type: ignore[arg-type]
        self.parents: dict[int, int | None] = {}
        self.commands: list[Command] = []
        self.snapshots_wait = False
        self._asked = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.publisher.on_command(self._schedule)

    def _schedule(self, command: Command) -> None:
        self._loop.call_soon_threadsafe(self._command, command)

    def _command(self, command: Command) -> None:
        self.commands.append(command)
        self._asked.set()
        if isinstance(command, Snapshot) and not self.snapshots_wait:
            self.tell_all()

    def tell_all(self) -> None:
        """Publish the whole tree."""
        events: list[KvEvent] = [AllBlocksCleared()]
        self.publish(*events, *(stored(block, parent) for block, parent in self.parents.items()))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for the condition, which only commands can make true."""
        async with asyncio.timeout(20):
            while not condition():
                self._asked.clear()
                await self._asked.wait()

    def publish(self, *events: KvEvent) -> None:
        """Publish events, true or not, as one batch."""
        self.publisher.publish(KvEventBatch(0.0, list(events)))

    def store(self, block: int, parent: int | None = None) -> None:
        self.parents[block] = parent
        self.publish(stored(block, parent))

    def remove(self, block: int) -> None:
        del self.parents[block]
        self.publish(BlockRemoved([block]))


class WorkerCache:
    """A listener that keeps the blocks it was told of."""

    def __init__(self) -> None:
        self.parents: dict[int, int | None] = {}
        self.records: list[Span] = []
        self.told = 0
        self.is_live = False
        self.losses: list[str] = []
        self.expected: str | None = None  # the incarnation that it must be
        self._changed = asyncio.Event()

    def kv(self, event: KvEvent) -> None:
        self.told += 1
        if isinstance(event, AllBlocksCleared):
            self.parents.clear()
        elif isinstance(event, BlockRemoved):
            for block in event.block_hashes:
                self.parents.pop(block, None)
        else:
            parent = event.parent_block_hash
            if parent is not None and parent not in self.parents:
                raise ValueError(f"block {parent} is not here")
            self.parents[event.block_hashes[0]] = parent
        self._changed.set()

    def check_incarnation(self, incarnation: str) -> None:
        if self.expected not in (None, incarnation):
            raise EventStreamError(f"{incarnation} is not {self.expected}")

    def span(self, record: Span) -> None:
        self.records.append(record)
        self._changed.set()

    def live(self) -> None:
        self.is_live = True
        self._changed.set()

    def lost(self, reason: str) -> None:
        self.is_live = False
        self.losses.append(reason)
        self.parents.clear()
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for the condition, which only news can make true."""
        async with asyncio.timeout(20):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def soon(self) -> None:
        """Wait for news, but not for long."""
        self._changed.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), 0.05)


class Relay:
    """Stands between a publisher and its subscriber; `disturb` says what becomes of a message."""

    def __init__(self, publisher: str) -> None:
        context = zmq.asyncio.Context.instance()
        self._in, self._out = context.socket(zmq.XSUB), context.socket(zmq.XPUB)
        self._in.linger = self._out.linger = 0
        self._in.connect(publisher)
        self._out.bind("tcp://127.0.0.1:*")
        self.address = self._out.get_string(zmq.LAST_ENDPOINT)
        self.disturb: Callable[[Frames], list[Frames]] = lambda frames: [frames]
        self._seen = -1
        self._news = asyncio.Event()

    @property
    def seen(self) -> int:
        """The number of the last batch that came here, passed on or not."""
        return self._seen

    async def saw(self, number: int) -> None:
        """Wait until a batch has come here."""
        async with asyncio.timeout(20):
            while self._seen < number:
                self._news.clear()
                await self._news.wait()

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._down())
                group.create_task(self._up())
        finally:
            self._in.close()
            self._out.close()

    async def _down(self) -> None:
        while True:
            frames = await self._in.recv_multipart()
            for passed in self.disturb(frames):
                await self._out.send_multipart(passed)
            self._seen = max(self._seen, number_of(frames))
            self._news.set()

    async def _up(self) -> None:
        while True:
            await self._in.send_multipart(await self._out.recv_multipart())


def number_of(frames: Frames) -> int:
    """The number of a batch; -1 for other messages."""
    name, number, _ = frames
    return int.from_bytes(number, "big") if name[:3] == b"kv:" else -1


@asynccontextmanager
async def running(*work: object) -> AsyncIterator[None]:
    """Run `run()` of each in the background; they have ended when this ends."""
    tasks = [asyncio.create_task(one.run()) for one in work]  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
