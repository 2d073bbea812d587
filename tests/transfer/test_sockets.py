"""Lender and reader over real sockets, with threads as SGLang's processes have them."""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import numpy as np
import pytest
import zmq

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.engine.transfer.lender import Lender
from ps_sglang.engine.transfer.limits import TransferLimits
from ps_sglang.engine.transfer.mailbox import Mailbox
from ps_sglang.engine.transfer.memory import HostRows
from ps_sglang.engine.transfer.outbox import Outbox
from ps_sglang.engine.transfer.prefix_digest import PrefixDigest
from ps_sglang.engine.transfer.pulls import Outcome
from ps_sglang.engine.transfer.reader import Reader
from ps_sglang.engine.transfer.serving import serve
from ps_sglang.engine.transfer.shared_pool import (
    AttachedPool,
    PoolDescriptor,
    SharedMemory,
    UnreachablePoolError,
    describe,
)
from ps_sglang.engine.waiting import Doorbell
from ps_sglang.wires import Refusals, as_client, as_listener

BUFFERS, PAGES, WIDTH = 4, 4000, 768
ROOMS, ROOM_PAGES = 24, 150
LIMITS = TransferLimits(batch_bytes=1 << 17)
LONG_MS = 60_000


@contextmanager
def endpoint(name: str, key: ClusterKey | None) -> Iterator[tuple[Mailbox, str, Outbox, Any]]:
    """A mailbox, the address of a bound PULL socket, an outbox, and `serve` bound to the socket."""
    with zmq.Context() as context, closing(Mailbox(name)) as mailbox, ExitStack() as stack:
        as_listener(context, key)
        socket = stack.enter_context(context.socket(zmq.PULL))
        as_client(context, key)
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        outbox = Outbox(context, mailbox)
        over = threading.Event()
        threads: list[threading.Thread] = []

        def start(side: Lender | Reader) -> None:
            thread = threading.Thread(
                target=serve,
                args=(socket, side.receive, side.tick),
                kwargs={"refusals": Refusals("transfer"), "until": over.is_set},
            )
            thread.start()
            threads.append(thread)

        try:
            yield mailbox, f"tcp://127.0.0.1:{port}", outbox, start
        finally:
            over.set()
            for thread in threads:
                thread.join()
            outbox.close()


class Events:
    """What the prefill side heard of each room; its threads sleep on the bell."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.pulls: set[int] = set()
        self.outcomes: dict[int, Outcome] = {}
        self._mailbox = mailbox
        self._bell = Doorbell([mailbox.fd])

    @property
    def heard(self) -> set[int]:
        """Rooms that were pulled or are over."""
        return self.pulls | set(self.outcomes)

    def wait_for(self, lender: Lender, among: set[int], ready: Callable[[], set[int]]) -> set[int]:
        """Act as an idle scheduler until some of the rooms are ready."""
        while not (rooms := among & ready()):
            self._bell.wait(LONG_MS)
            self._mailbox.collect(lender.receive)
        return rooms

    def close(self) -> None:
        self._bell.close()

    def pulled(self, room: int, prefix_tokens: int) -> None:
        self.pulls.add(room)
        self._bell.ring()

    def received(self, room: int) -> None:
        self._ended(room, Outcome())

    def failed(self, room: int, reason: str) -> None:
        self._ended(room, Outcome(reason))

    def _ended(self, room: int, outcome: Outcome) -> None:
        assert room not in self.outcomes, "a room ends once"
        self.outcomes[room] = outcome
        self._bell.ring()


def refuse_to_map(_descriptor: PoolDescriptor) -> AttachedPool:
    raise UnreachablePoolError("not in this test")


@pytest.mark.parametrize("key", [None, ClusterKey.make()], ids=["open", "with a key"])
@pytest.mark.parametrize("open_pool", [AttachedPool, refuse_to_map], ids=["shm", "tcp"])
def test_many_rooms_at_once_with_aborts(open_pool: Any, key: ClusterKey | None) -> None:
    source = random.Random(5)
    shared = SharedMemory(BUFFERS * PAGES * WIDTH)
    lent = np.frombuffer(shared.buffer, dtype=np.uint8)[: BUFFERS * PAGES * WIDTH]
    lent[:] = np.random.default_rng(1).integers(0, 256, lent.size, dtype=np.uint8)
    addresses = [lent.ctypes.data + number * PAGES * WIDTH for number in range(BUFFERS)]
    lengths = [PAGES * WIDTH] * BUFFERS
    copied = np.zeros((BUFFERS, PAGES, WIDTH), dtype=np.uint8)
    metadata = [np.full((ROOMS, 64), value, dtype=np.uint8) for value in (7, 0)]
    aux = [HostRows([rows.ctypes.data], [rows.nbytes], [64]) for rows in metadata]
    rows = source.sample(range(PAGES), ROOMS * ROOM_PAGES)
    targets = source.sample(range(PAGES), ROOMS * ROOM_PAGES)
    names = secrets.token_hex(8), secrets.token_hex(8)
    with (
        endpoint(names[0], key) as (lender_mail, lender_at, lender_out, serve_lender),
        endpoint(names[1], key) as (reader_mail, reader_at, reader_out, serve_reader),
        closing(Events(lender_mail)) as events,
        closing(Doorbell([reader_mail.fd])) as bell,
    ):
        lender = Lender(
            HostRows(addresses, lengths, [WIDTH] * BUFFERS), aux[0], base_fingerprint="base",
            incarnation=names[0], pool=describe(addresses, lengths), send=lender_out.send,
            events=events, clock=time.monotonic, limits=LIMITS,
        )  # fmt: skip
        reader = Reader(
            HostRows([buffer.ctypes.data for buffer in copied], lengths, [WIDTH] * BUFFERS), aux[1],
            session=f"{reader_at}#{names[1]}", base_fingerprint="base", send=reader_out.send,
            clock=time.monotonic, open_pool=open_pool, wake=bell.ring,
            collect=reader_mail.collect, limits=LIMITS,
        )  # fmt: skip
        serve_lender(lender)
        serve_reader(reader)

        def prefill() -> None:
            """Offers each room's pages in two chunks once it is pulled."""
            left = set(range(ROOMS))
            for room in left:
                lender.open(room, PrefixDigest.of([room]))
            while left:
                ready = events.wait_for(lender, left, lambda: events.heard)
                for room in ready:
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
                prefix=PrefixDigest.of([room]),
            )  # fmt: skip
        while len(outcomes) < ROOMS:
            bell.wait(LONG_MS)
            for room in set(range(ROOMS)) - set(outcomes):
                outcome = reader.poll(room)
                if outcome is None and room in aborted:
                    reader.close(room)
                    outcome = Outcome("aborted")
                    copied[:, targets[room * ROOM_PAGES : (room + 1) * ROOM_PAGES]] = 0xAB
                if outcome is not None:
                    outcomes[room] = outcome
                    reader.close(room)
        prefiller.join()
        for room in range(ROOMS):
            events.wait_for(lender, {room}, lambda: set(events.outcomes))
        for room in range(ROOMS):
            lender.close(room, "over")
    source_pages = lent.reshape(BUFFERS, PAGES, WIDTH)
    for room, outcome in outcomes.items():
        here = slice(room * ROOM_PAGES, (room + 1) * ROOM_PAGES)
        if outcome == Outcome():
            assert (copied[:, targets[here]] == source_pages[:, rows[here]]).all()
            assert (metadata[1][room] == 7).all()
            assert events.outcomes[room] == Outcome()
        else:
            assert room in aborted
            assert outcome == Outcome("aborted")
            assert (copied[:, targets[here]] == 0xAB).all(), "written after it was closed"
    assert sum(outcome == Outcome() for outcome in outcomes.values()) >= ROOMS - len(aborted)
    assert lender.rooms == 0
