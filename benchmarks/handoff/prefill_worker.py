"""The prefill worker of the benchmark: the process that pages come from, and that measures."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Final

import numpy as np
import xxhash

from benchmarks.handoff import peers
from benchmarks.handoff.cases import Case, Pages
from benchmarks.handoff.decode_worker import metadata, serve
from benchmarks.handoff.pool import Pool
from benchmarks.handoff.sockets import OVER_TCP, Port
from ps_sglang.engine.transfer.lender import Lender
from ps_sglang.engine.transfer.prefix_digest import PrefixDigest
from ps_sglang.engine.transfer.shared_pool import describe

OURS: Final = ("shm", "shm_without_digest", *OVER_TCP)
_DEADLINE_S: Final = 60.0


class PrefillWorker:
    """Moves pages to the decode worker in every way that is compared."""

    def __init__(self, orders: Connection, pool: Pool, names: list[str]) -> None:
        self._orders = orders
        self._pool = pool
        self._lenders: dict[tuple[str, int], tuple[Lender, _Rooms, Port]] = {}
        self._random = np.random.default_rng(0)
        self._room = 0
        self._targets, addresses = orders.recv()
        self.ways: dict[str, Callable[[Case, Pages, Pages], float]] = {
            "memcpy": self._memcpy,
            **{way: functools.partial(self._ours, way) for way in OURS},
        }
        self._peers = peers.start(names, pool)
        for name, peer in self._peers.items():
            peer.connect(addresses[name])
            self.ways[name] = functools.partial(self._theirs, name, peer)

    def close(self) -> None:
        """Stop the threads of ours; the decode worker ends by itself once it hears no more."""
        self._orders.close()
        for _, _, port in self._lenders.values():
            port.close()

    def move(self, way: str, case: Case) -> float:
        """Seconds that a handoff of pages drawn anew takes."""
        return self.ways[way](case, case.draw(self._random), case.draw(self._random))

    def check(self, way: str, case: Case) -> float:
        """Seconds of a handoff after which what arrived is compared with what was sent.

        Raises RuntimeError if other bytes arrived.
        """
        pages, targets = case.draw(self._random), case.draw(self._random)
        self._ask("wipe", targets, case.page_size)
        seconds = self.ways[way](case, pages, targets)
        expected = xxhash.xxh3_128_digest(self._pool.read(pages, case.page_size).data)
        if way != "memcpy" and self._ask("digest", targets, case.page_size) != expected:
            raise RuntimeError(f"{way} moved other bytes: {case}")
        return seconds

    def _ask(self, *order: Any) -> Any:
        self._orders.send(order)
        return self._orders.recv()

    def _memcpy(self, case: Case, _pages: Pages, _targets: Pages) -> float:
        last = self._pool.bytes.size - case.size
        source, target = (int(offset) & ~63 for offset in self._random.integers(last, size=2))
        seconds: float = self._ask("memcpy", source, target, case.size)
        return seconds

    def _ours(self, way: str, case: Case, pages: Pages, targets: Pages) -> float:
        lender, rooms, port = self._lender(way, case.page_size)
        self._room += 1
        lender.open(self._room, PrefixDigest.of(range(len(pages) * case.page_size)))
        self._orders.send(("pull", way, case.page_size, port.endpoint, self._room, targets))
        rooms.wait(self._room, "pulled")
        start = time.perf_counter()
        lender.offer(self._room, pages, aux_slot=0)
        rooms.wait(self._room, "landed")
        lender.close(self._room, "done")
        failure, end = self._orders.recv()  # one clock for all processes of a host
        if failure is not None:
            raise RuntimeError(f"{way}: {failure}")
        return float(end - start)

    def _lender(self, way: str, page_size: int) -> tuple[Lender, _Rooms, Port]:
        if (way, page_size) not in self._lenders:
            port = Port(way)
            rooms = _Rooms(port)
            pool = describe(self._pool.addresses, self._pool.lengths)
            lender = Lender(
                self._pool.rows(page_size, digest=way != "shm_without_digest"),
                metadata(),
                base_fingerprint="base",
                incarnation=port.name,
                pool=None if way in OVER_TCP else pool,
                send=port.outbox.send,
                events=rooms,
                clock=time.monotonic,
            )
            rooms.lender = lender
            port.listen(lender)
            self._lenders[way, page_size] = lender, rooms, port
        return self._lenders[way, page_size]

    def _theirs(
        self, name: str, peer: peers.Peer, case: Case, pages: Pages, targets: Pages
    ) -> float:
        self._ask("receive", name)
        start = time.perf_counter()
        peer.send(pages, self._targets, targets, case.page_size)
        return time.perf_counter() - start


class _Rooms:
    """What a scheduler would find when it polls."""

    lender: Lender

    def __init__(self, port: Port) -> None:
        self._port = port
        self._state = (0, "")

    def pulled(self, room: int, prefix_tokens: int) -> None:
        self._set(room, "pulled")

    def received(self, room: int) -> None:
        self._set(room, "landed")

    def failed(self, room: int, reason: str) -> None:
        self._set(room, reason)

    def _set(self, room: int, state: str) -> None:
        self._state = (room, state)
        self._port.doorbell.ring()

    def wait(self, room: int, state: str) -> None:
        """Sleep until a room is in a state.

        Raises RuntimeError if it comes into another one, or into none.
        """
        deadline = time.monotonic() + _DEADLINE_S
        while self._state != (room, state):
            failed = self._state[0] == room and self._state[1] not in ("pulled", "landed")
            if failed or time.monotonic() > deadline:
                raise RuntimeError(f"room {room} is not {state}: {self._state}")
            self._port.doorbell.wait(1000)
            self._port.mailbox.collect(self.lender.receive)


@contextlib.contextmanager
def workers(names: list[str]) -> Iterator[PrefillWorker]:
    """A prefill worker in this process, and its decode worker in another.

    `names` are the peers to compare with.
    """
    pool = Pool(seed=1)
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve,
        args=(there, describe(pool.addresses, pool.lengths), names),
        daemon=True,
    )
    process.start()
    there.close()
    try:
        with contextlib.closing(PrefillWorker(here, pool, names)) as worker:
            yield worker
    finally:
        process.join(timeout=10)
        process.kill()
        process.join()
        process.close()
