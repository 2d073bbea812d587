"""The feed of a stand-in engine, over the product's own publisher."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

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

STEP_SECONDS: Final = 0.01
"""A forward pass of a small model."""


@dataclass(frozen=True)
class Change:
    """Pages that went, then pages of one prompt that came, the first after `parent`."""

    gone: Sequence[int]
    new: Sequence[int]
    parent: int | None
    tokens: Sequence[int]
    salt: str

    def events(self, size: int) -> list[KvEvent]:
        """What a worker with pages of `size` tokens tells of it."""
        events: list[KvEvent] = []
        if self.gone:
            events.append(BlockRemoved(list(self.gone)))
        if self.new:
            stored = list(self.new), self.parent, list(self.tokens), size
            events.append(BlockStored(*stored, cache_salt=self.salt or None))
        return events


class NoFeed:
    """An engine that publishes nothing."""

    endpoint = ""
    control = ""
    incarnation = "0"  # other engines listen on other ports

    def changed(self, change: Change) -> None:
        """Pages of one prompt came, for which others went."""

    def cleared(self) -> None:
        """All pages went."""

    def record(self, record: Span) -> None:
        """A leg of a request has ended."""

    def close(self) -> None:
        """Stop publishing."""


class Feed(NoFeed):
    """Publishes what changes; for the thread of the running event loop.

    As SGLang's scheduler does, it publishes once a step what happened during the step.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size: Final = page_size
        self._waiting: list[KvEvent] = []
        self._held: dict[int, BlockStored] = {}  # parents always came before their children
        self._publisher = WorkerEventPublisher()
        self.endpoint = self._publisher.endpoint
        self.control = self._publisher.control
        self.incarnation = self._publisher.incarnation
        self._loop = asyncio.get_running_loop()
        self._step: asyncio.TimerHandle | None = None
        self._publisher.on_command(self._pass_on)

    def changed(self, change: Change) -> None:
        size, salt, parent = self._page_size, change.salt or None, change.parent
        self._waiting += change.events(size)
        for page in change.gone:
            del self._held[page]
        for number, page in enumerate(change.new):
            content = list(change.tokens[number * size : (number + 1) * size])
            self._held[page] = BlockStored([page], parent, content, size, cache_salt=salt)
            parent = page
        self._publish_soon()

    def cleared(self) -> None:
        self._held.clear()
        self._waiting.append(AllBlocksCleared())
        self._publish_soon()

    def record(self, record: Span) -> None:
        self._publisher.record(record)

    def close(self) -> None:
        self._publisher.shutdown()

    def _publish_soon(self) -> None:
        if self._step is None and self._waiting:
            self._step = self._loop.call_later(STEP_SECONDS, self._end_step)

    def _end_step(self) -> None:
        self._step = None
        events, self._waiting = self._waiting, []
        self._publisher.publish(KvEventBatch(time.time(), events))

    def _pass_on(self, command: Command) -> None:
        if isinstance(command, Snapshot):
            self._loop.call_soon_threadsafe(self._publish_all)

    def _publish_all(self) -> None:
        self._waiting += [AllBlocksCleared(), *self._held.values()]
        self._publish_soon()
