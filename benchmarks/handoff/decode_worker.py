"""The decode worker of the benchmark: the process that pages go to."""

from __future__ import annotations

import ctypes
import logging
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import xxhash

from benchmarks.handoff import peers
from benchmarks.handoff.cases import Pages
from benchmarks.handoff.pool import Pool
from benchmarks.handoff.sockets import Port
from ps_sglang.engine.transfer.memory import HostRows
from ps_sglang.engine.transfer.prefix_digest import PrefixDigest
from ps_sglang.engine.transfer.reader import Reader
from ps_sglang.engine.transfer.shared_pool import AttachedPool, PoolDescriptor
from ps_sglang.engine.waiting import Doorbell

_LONGEST_WAIT_MS = 30_000


def serve(orders: Connection, descriptor: PoolDescriptor, names: list[str]) -> None:
    """Carry out what the prefill worker asks for until it hangs up."""
    logging.basicConfig(level=logging.ERROR)
    worker = _DecodeWorker(orders, descriptor, names)
    orders.send(worker.address)
    while True:
        try:
            name, *arguments = orders.recv()
        except EOFError:
            return
        getattr(worker, name)(*arguments)


class _DecodeWorker:
    def __init__(self, orders: Connection, descriptor: PoolDescriptor, names: list[str]) -> None:
        self._orders = orders
        self._pool = Pool(seed=2)
        self._source = AttachedPool(descriptor)
        # A mapping is filled as it is read; here it is full from the start.
        ctypes.string_at(self._source.addresses[0], descriptor.size - descriptor.offsets[0])
        self._readers: dict[tuple[str, int], tuple[Reader, Doorbell]] = {}
        self._peers = peers.start(names, self._pool)
        self.address = (
            self._pool.addresses, {name: peer.address for name, peer in self._peers.items()}
        )  # fmt: skip

    def memcpy(self, source: int, target: int, size: int) -> None:
        """Copy bytes of the prefill worker's pool into this one, at offsets from their starts."""
        addresses = self._pool.start + target, self._source.addresses[0] + source
        start = time.perf_counter()
        ctypes.memmove(*addresses, size)
        self._orders.send(time.perf_counter() - start)

    def pull(self, way: str, page_size: int, peer: str, room: int, pages: Pages) -> None:
        """Pull pages as a decode worker does, and say how it ended, and when."""
        reader, doorbell = self._reader(way, page_size)
        prefix = PrefixDigest.of(range(len(pages) * page_size))
        reader.pull(room, peer, rows=pages, aux_slot=0, prefix_tokens=0, prefix=prefix)
        while (outcome := reader.poll(room)) is None:
            doorbell.wait(_LONGEST_WAIT_MS)
        self._orders.send((outcome.failure, time.perf_counter()))
        reader.close(room)

    def _reader(self, way: str, page_size: int) -> tuple[Reader, Doorbell]:
        if (way, page_size) not in self._readers:
            port = Port(way)
            reader = Reader(
                self._pool.rows(page_size, digest=way != "shm_without_digest"),
                metadata(),
                session=f"{port.endpoint}#{port.name}",
                base_fingerprint="base",
                send=port.outbox.send,
                clock=time.monotonic,
                open_pool=lambda _: self._source,
                wake=port.doorbell.ring,
                collect=port.mailbox.collect,
            )
            port.listen(reader)
            self._readers[way, page_size] = reader, port.doorbell
        return self._readers[way, page_size]

    def receive(self, name: str) -> None:
        """Let a peer receive until there is another order."""
        peer = self._peers[name]
        self._orders.send(None)
        while peer.polls and not self._orders.poll():
            peer.progress()

    def wipe(self, pages: Pages, page_size: int) -> None:
        """Forget what pages hold."""
        self._pool.wipe(pages, page_size)
        self._orders.send(None)

    def digest(self, pages: Pages, page_size: int) -> None:
        """Say what pages hold."""
        self._orders.send(xxhash.xxh3_128_digest(self._pool.read(pages, page_size).data))


def metadata() -> HostRows:
    """One slot of request metadata, about as large as SGLang's."""
    buffer: Any = np.zeros(1024, dtype=np.uint8)
    _kept.append(buffer)
    return HostRows([buffer.ctypes.data], [1024], [1024])


_kept: list[Any] = []
