"""Lender and reader over real sockets, with threads as SGLang's processes have them."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import zmq

from ps_sglang.engine.transfer.lender import Lender
from ps_sglang.engine.transfer.limits import Limits
from ps_sglang.engine.transfer.memory import HostRows
from ps_sglang.engine.transfer.outbox import Outbox
from ps_sglang.engine.transfer.prefix import BasePrefix
from ps_sglang.engine.transfer.reader import Outcome, Reader
from ps_sglang.engine.transfer.serving import serve
from ps_sglang.engine.transfer.shared_pool import (
    AttachedPool,
    PoolDescriptor,
    SharedMemory,
    UnreachablePoolError,
    describe,
)

BUFFERS, PAGES, WIDTH = 4, 4000, 768
ROOMS, ROOM_PAGES = 24, 150
LIMITS = Limits(batch_bytes=1 << 17)


@contextmanager
def endpoint() -> Iterator[tuple[zmq.Socket[Any], str, Outbox, Any]]:
    """A bound PULL socket, its address, an outbox, and `serve` bound to it."""
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        outbox = Outbox(context)
        over = threading.Event()
        threads: list[threading.Thread] = []

        def start(side: Lender | Reader) -> None:
            thread = threading.Thread(
                target=serve, args=(socket, side.receive, side.tick), kwargs={"until": over.is_set}
            )
            thread.start()
            threads.append(thread)

        try:
            yield socket, f"tcp://127.0.0.1:{port}", outbox, start
        finally:
            over.set()
            for thread in threads:
                thread.join()
            outbox.close()


class Events:
    """What the prefill side heard of each room."""

    def __init__(self) -> None:
        self.pulls: set[int] = set()
        self.outcomes: dict[int, Outcome] = {}
        self.news = threading.Condition()

    def wait_for_more(self, *, than: int) -> set[int]:
        """Rooms that were pulled or are over, once they are more than so many."""
        with self.news:
            self.news.wait_for(lambda: len(self.pulls | set(self.outcomes)) > than)
            return self.pulls | set(self.outcomes)

    def pulled(self, room: int, prefix_tokens: int) -> None:
        with self.news:
            self.pulls.add(room)
            self.news.notify()

    def landed(self, room: int) -> None:
        self._ended(room, Outcome())

    def failed(self, room: int, reason: str) -> None:
        self._ended(room, Outcome(reason))

    def _ended(self, room: int, outcome: Outcome) -> None:
        with self.news:
            assert room not in self.outcomes, "a room ends once"
            self.outcomes[room] = outcome
            self.news.notify()


def refuse_to_map(_descriptor: PoolDescriptor) -> AttachedPool:
    raise UnreachablePoolError("not in this test")


@pytest.mark.parametrize("open_pool", [AttachedPool, refuse_to_map], ids=["shm", "tcp"])
def test_many_rooms_at_once_with_aborts(open_pool: Any) -> None:
    source = random.Random(5)
    shared = SharedMemory(BUFFERS * PAGES * WIDTH)
    lent = np.frombuffer(shared.buffer, dtype=np.uint8)[: BUFFERS * PAGES * WIDTH]
    lent[:] = np.random.default_rng(1).integers(0, 256, lent.size, dtype=np.uint8)
    addresses = [lent.ctypes.data + number * PAGES * WIDTH for number in range(BUFFERS)]
    lengths = [PAGES * WIDTH] * BUFFERS
    taken = np.zeros((BUFFERS, PAGES, WIDTH), dtype=np.uint8)
    metadata = [np.full((ROOMS, 64), value, dtype=np.uint8) for value in (7, 0)]
    aux = [HostRows([rows.ctypes.data], [rows.nbytes], [64]) for rows in metadata]
    events, news = Events(), threading.Event()
    rows = source.sample(range(PAGES), ROOMS * ROOM_PAGES)
    targets = source.sample(range(PAGES), ROOMS * ROOM_PAGES)
    with endpoint() as (_, lender_at, lender_out, serve_lender), endpoint() as (
        _, reader_at, reader_out, serve_reader,
    ):  # fmt: skip
        lender = Lender(
            HostRows(addresses, lengths, [WIDTH] * BUFFERS), aux[0], base_fingerprint="base",
            incarnation="one", pool=describe(addresses, lengths), send=lender_out.send,
            events=events, clock=time.monotonic, limits=LIMITS,
        )  # fmt: skip
        reader = Reader(
            HostRows([buffer.ctypes.data for buffer in taken], lengths, [WIDTH] * BUFFERS), aux[1],
            session=f"{reader_at}#one", base_fingerprint="base", send=reader_out.send,
            clock=time.monotonic, open_pool=open_pool, news=news.set, limits=LIMITS,
        )  # fmt: skip
        serve_lender(lender)
        serve_reader(reader)

        def prefill() -> None:
            """Offers each room's pages in two chunks once it is pulled."""
            left = set(range(ROOMS))
            for room in left:
                lender.open(room, BasePrefix.of([room]))
            while left:
                for room in (ready := left & events.wait_for_more(than=ROOMS - len(left))):
                    pages = np.array(rows[room * ROOM_PAGES : (room + 1) * ROOM_PAGES])
                    lender.offer(room, pages[:50])
                    lender.offer(room, pages[50:], aux_slot=room)
                left -= ready

        prefiller = threading.Thread(target=prefill)
        prefiller.start()
        outcomes: dict[int, Outcome | None] = {}
        aborted = {room for room in range(ROOMS) if room % 6 == 5}
        for room in range(ROOMS):
            pages = np.array(targets[room * ROOM_PAGES : (room + 1) * ROOM_PAGES])
            reader.pull(
                room, lender_at, rows=pages, aux_slot=room, prefix_tokens=0,
                prefix=BasePrefix.of([room]),
            )  # fmt: skip
        while len(outcomes) < ROOMS:
            news.wait()
            news.clear()
            for room in set(range(ROOMS)) - set(outcomes):
                outcome = reader.land(room)
                if outcome is None and room in aborted:
                    reader.close(room)
                    outcome = Outcome("aborted")
                    pages = targets[room * ROOM_PAGES : (room + 1) * ROOM_PAGES]
                    taken[:, pages] = 0xAB
                if outcome is not None:
                    outcomes[room] = outcome
                    reader.close(room)
        prefiller.join()
        with events.news:
            events.news.wait_for(lambda: len(events.outcomes) == ROOMS)
        for room in range(ROOMS):
            lender.close(room, "over")
    source_pages = lent.reshape(BUFFERS, PAGES, WIDTH)
    for room, outcome in outcomes.items():
        here = slice(room * ROOM_PAGES, (room + 1) * ROOM_PAGES)
        if outcome == Outcome():
            assert (taken[:, targets[here]] == source_pages[:, rows[here]]).all()
            assert (metadata[1][room] == 7).all()
            assert events.outcomes[room] == Outcome()
        else:
            assert room in aborted
            assert outcome == Outcome("aborted")
            assert (taken[:, targets[here]] == 0xAB).all(), "written after it was closed"
    assert sum(outcome == Outcome() for outcome in outcomes.values()) >= ROOMS - len(aborted)
    assert lender.rooms == 0
