"""The gateway's end of an event stream: what one worker publishes, in order and without a gap.

Batches are numbered. One that is missing is asked for again; where the worker does not keep it any
more, or after its restart, the whole tree is (a snapshot). A heartbeat asks for the stream's
position: it finds lost batches that nothing follows, and workers that have died.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass

import msgspec

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.events.control import Control, EventStreamError
from ps_sglang.events.inbox import Inbox
from ps_sglang.events.listener import MOST_BLOCKS, EventListener, pieces
from ps_sglang.events.messages import (
    KV,
    NOT_UNDERSTOOD,
    NUMBER_BYTES,
    TIMELINE,
    AllBlocksCleared,
    Expired,
    KvEvent,
    KvEventBatch,
    Position,
    Replay,
    Replayed,
    Reply,
    Request,
    Snapshot,
    Span,
    Status,
    read_topic,
)

log = logging.getLogger("ps_sglang.events")

_MESSAGES_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class SubscriberTiming:
    """Seconds: between heartbeats, to wait for an answer, until a silent worker counts as lost."""

    heartbeat: float = 1.0
    answer: float = 2.0
    lost: float = 5.0


class EventSubscriber:
    """One worker's event stream.

    `counts` has its batches, replays, snapshots, losses and malformed messages so far.
    """

    def __init__(
        self,
        publish: str,
        control: str,
        listener: EventListener,
        timing: SubscriberTiming | None = None,
        key: ClusterKey | None = None,
    ) -> None:
        """Subscribe to address `publish` and ask at address `control`, once `run` runs.

        `key` is the cluster's, without which its workers listen to nobody.
        """
        self._publish = publish
        self._listener = listener
        self._timing = timing or SubscriberTiming()
        self._key = key
        self._control = Control(control, self._timing.answer, key)
        self._batches = msgspec.msgpack.Decoder(KvEventBatch)
        self._records = msgspec.msgpack.Decoder(Span)
        self._incarnation = ""
        self._former_incarnations: set[str] = set()
        self._next = 0
        self._announced = 0
        self._snapshot_at = float("-inf")
        # False until the whole tree has come, from an AllBlocksCleared on.
        self._is_complete = False
        self._is_live = False
        self._heard_at = 0.0
        self._blocks = 0
        self.counts: Counter[str] = Counter()

    @property
    def is_live(self) -> bool:
        """Whether the listener knows what the worker holds."""
        return self._is_live

    async def ask(self, request: Request) -> Reply:
        """Ask the worker; raises EventStreamError if it does not answer, or refuses."""
        return (await self._control.ask(request))[0]

    def close(self) -> None:
        """Close the connection for requests; the next one makes another."""
        self._control.close()

    async def run(self) -> None:
        """Follow the worker until cancelled; a worker that has died may come back."""
        # Traces first: who gets a snapshot gets them too.
        topics = [f"{kind}:".encode() for kind in (TIMELINE, KV)]
        inbox = Inbox(self._publish, topics, self._key)
        try:
            self._heard_at = time.monotonic()
            while True:
                try:
                    await self._follow(inbox)
                except EventStreamError as error:
                    self._no_answer(str(error))
                    await asyncio.sleep(self._timing.heartbeat)
                except Exception as error:  # the outermost loop: nothing that comes may end it
                    log.exception("event stream of %s: failed on a message", self._publish)
                    self._lose(f"its events could not be applied: {error!r}")
                    await asyncio.sleep(self._timing.heartbeat)
        finally:
            inbox.close()
            self.close()

    async def _follow(self, inbox: Inbox) -> None:
        """Take in what comes; returns after each heartbeat. Raises EventStreamError."""
        if not self._is_complete and time.monotonic() - self._snapshot_at >= self._timing.lost:
            await self._ask_snapshot()
        # Until the whole tree has come, look more often: the subscription may have missed it.
        seconds = self._timing.heartbeat if self._is_complete else self._timing.heartbeat / 10
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if not await inbox.wait(left):
                break
            await self._drain(inbox)
        await self._heartbeat()

    async def _drain(self, inbox: Inbox) -> None:
        for _ in range(_MESSAGES_AT_ONCE):
            if (frames := inbox.take()) is None:
                return
            await self._take(frames)
        await asyncio.sleep(0)  # other tasks of the event loop run

    async def _heartbeat(self) -> None:
        position = await self._position(Status())
        if position.incarnation != self._incarnation:
            await self._ask_snapshot()
            return
        # What was there a heartbeat ago is not on its way any more.
        announced, self._announced = self._announced, position.next
        if announced > self._next:
            await self._catch_up()

    def _no_answer(self, reason: str) -> None:
        if self._is_live and time.monotonic() - self._heard_at >= self._timing.lost:
            self._lose(reason)

    def _lose(self, reason: str) -> None:
        self._is_complete = False
        if self._is_live:
            self._is_live = False
            self.counts["losses"] += 1
            log.warning("event stream of %s lost: %s", self._publish, reason)
        self._listener.lost(reason)

    # Published messages

    async def _take(self, frames: list[bytes]) -> None:
        try:
            name, number, content = frames
            kind, incarnation = read_topic(name)
            record = self._records.decode(content) if kind == TIMELINE else None
            if kind not in (KV, TIMELINE) or len(number) != NUMBER_BYTES:
                raise ValueError(f"its topic is {name!r}, its number {number!r}")
        # A damaged batch is missing, and asked for again.
        except NOT_UNDERSTOOD as error:
            self.counts["malformed"] += 1
            log.warning("event stream of %s: a message is not understood: %s", self._publish, error)
            return
        if record is not None:
            self._listener.span(record)
        else:
            await self._take_batch(incarnation, int.from_bytes(number, "big"), content)

    async def _take_batch(self, incarnation: str, number: int, content: bytes) -> None:
        if incarnation in self._former_incarnations:
            return
        if incarnation != self._incarnation:
            # The worker has restarted, or this is the last message of one that has: ask.
            await self._ask_snapshot()
            if incarnation != self._incarnation:
                self._former_incarnations.add(incarnation)
                return
        if number > self._next:
            await self._catch_up()
        if number > self._next:
            await self._ask_snapshot()
        elif number == self._next:
            await self._apply(content)

    async def _apply(self, content: bytes) -> None:
        self._heard_at = time.monotonic()
        self._next += 1
        self.counts["batches"] += 1
        try:
            for event in self._batches.decode(content).events:
                # After a gap only the whole tree makes sense.
                if self._is_complete or isinstance(event, AllBlocksCleared):
                    for piece in pieces(event):
                        self._listener.kv(piece)
                        await self._yield_to_others(piece)
                    self._is_complete = True
        except NOT_UNDERSTOOD as error:
            # The events do not add up. If the whole tree does not either, `_follow` waits.
            self._lose(f"its events do not fit: {error}")
            if time.monotonic() - self._snapshot_at >= self._timing.heartbeat:
                await self._ask_snapshot()
        if self._is_complete and not self._is_live:
            self._is_live = True
            log.info("event stream of %s is live", self._publish)
            self._listener.live()

    async def _yield_to_others(self, event: KvEvent) -> None:
        self._blocks += 1 if isinstance(event, AllBlocksCleared) else len(event.block_hashes)
        if self._blocks >= MOST_BLOCKS:
            self._blocks = 0
            await asyncio.sleep(0)

    # Requests to the worker

    async def _catch_up(self) -> None:
        """Ask for the batches from the next one on; raises EventStreamError."""
        self.counts["replays"] += 1
        reply, batches = await self._control.ask(Replay(self._incarnation, self._next))
        if isinstance(reply, Replayed) and reply.incarnation == self._incarnation:
            for number, content in enumerate(batches, start=reply.first):
                if number == self._next:
                    await self._apply(content)
        elif isinstance(reply, Expired | Replayed):
            await self._ask_snapshot()
        else:
            raise EventStreamError(f"it answered a request for batches with {reply!r}")

    async def _ask_snapshot(self) -> None:
        """Ask for the whole tree, which comes as batches; raises EventStreamError."""
        self.counts["snapshots"] += 1
        position = await self._position(Snapshot())
        self._snapshot_at = time.monotonic()
        self._is_complete = False
        self._incarnation = position.incarnation
        self._next = self._announced = position.next

    async def _position(self, request: Status | Snapshot) -> Position:
        position = await self.ask(request)
        if not isinstance(position, Position):
            raise EventStreamError(f"it answered {request!r} with {position!r}")
        self._require_worker(position.incarnation)
        self._heard_at = time.monotonic()
        return position

    def _require_worker(self, incarnation: str) -> None:
        """What answers now must be the worker, restarted or not; raises EventStreamError."""
        if self._incarnation not in ("", incarnation):
            self._former_incarnations.add(self._incarnation)
            self._incarnation = ""
            self._lose("it has restarted")
        try:
            self._listener.check_incarnation(incarnation)
        except EventStreamError as error:
            self._incarnation = ""
            self._lose(str(error))
            raise
