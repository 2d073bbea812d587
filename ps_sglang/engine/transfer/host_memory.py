"""KV pools in host memory: all tickets are done at once, as the caller's core does the work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from ps_sglang.engine.transfer.memory import HostRows, Indices, Packed
from ps_sglang.engine.transfer.page_memory import Done
from ps_sglang.engine.transfer.shared_pool import (
    AttachedPool,
    PoolDescriptor,
    UnreachablePoolError,
)

Attach = Callable[[PoolDescriptor], AttachedPool]


@dataclass(eq=False)
class HostPeerPool:
    """A peer's pool, mapped for as long as this object lives."""

    pool: AttachedPool
    rows: HostRows


class HostMemory:
    """A `PageMemory` of this process, which peers of its host map if it is shared."""

    path = "shm"
    is_written_late = False  # a CPU computes a step before it returns

    def __init__(
        self, rows: HostRows, pool: PoolDescriptor | None = None, attach: Attach = AttachedPool
    ) -> None:
        """Serve `rows`.

        Processes of this host map them by `pool`; None if they cannot. `attach` maps a peer's pool,
        or raises OSError with the reason.
        """
        self.row_bytes, self.row_total = rows.row_bytes, rows.row_total
        self._rows = rows
        self._pool = pool
        self._attach = attach

    def follow(self, *_streams: object) -> None:
        """See `PageMemory.follow`; a CPU launches nothing."""

    def describe(self) -> msgspec.Raw:
        """See `PageMemory.describe`."""
        return msgspec.Raw(msgspec.msgpack.encode(self._pool))

    def open(self, description: msgspec.Raw) -> HostPeerPool:
        """See `PageMemory.open`."""
        try:
            descriptor = msgspec.msgpack.decode(description, type=PoolDescriptor | None)
        except msgspec.MsgspecError as error:
            raise UnreachablePoolError(f"it is not in host memory ({error})") from error
        if descriptor is None:
            raise UnreachablePoolError("it is not in shared memory")
        pool = self._attach(descriptor)
        return HostPeerPool(pool, HostRows(pool.addresses, pool.lengths, self.row_bytes))

    def copy(self, source: HostPeerPool, source_rows: Indices, rows: Indices) -> Done[bytes]:
        """See `PageMemory.copy`."""
        return Done(self._rows.copy_from(source.rows, source_rows, rows))

    def digest(self, rows: Indices) -> Done[bytes]:
        """See `PageMemory.digest`."""
        return Done(self._rows.digest(rows))

    def gather(self, rows: Indices) -> Done[Packed]:
        """See `PageMemory.gather`."""
        return Done(self._rows.gather(rows))

    def scatter(self, rows: Indices, packed: object) -> Done[bytes]:
        """See `PageMemory.scatter`."""
        return Done(self._rows.scatter(rows, packed))
