"""What the handoff asks of the memory that a KV pool lies in.

`Lender` and `Reader` know pages by their numbers, the *rows* of a pool, and move them through a
`PageMemory`. It answers with *tickets*, as a device works on while its host goes on: copies and
digests are over when their tickets are done, in any order. Until then the rows that they read must
stay as they are, and the rows that they write belong to nobody else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import msgspec

if TYPE_CHECKING:
    from ps_sglang.engine.transfer.memory import Indices

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

PeerPool = Any
"""A peer's pool as `PageMemory.open` returned it. Only the memory that opened it looks inside."""


class Ticket(Protocol[T_co]):
    """Work on rows. Any thread may look at it."""

    def done(self) -> bool:
        """Whether it is over."""
        ...

    def wait(self) -> None:
        """Return once it is over."""
        ...

    @property
    def value(self) -> T_co:
        """What came of it, once it is over."""
        ...


class Done(Generic[T]):
    """A ticket of work that was over before it could be asked for."""

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value

    def done(self) -> bool:
        """It is."""
        return True

    def wait(self) -> None:
        """Nothing is left to wait for."""


class PageMemory(Protocol):
    """The rows of a pool, wherever they lie.

    Every method takes row numbers as an integer array in any order, and raises ValueError if one is
    outside the pool, before anything is read or written. Threads may share it. A digest is 16
    bytes, the same for the same bytes in every kind of memory.
    """

    row_bytes: list[int]
    """Bytes of one row in each buffer."""
    row_total: int
    """Bytes of one row over all buffers."""
    path: str
    """What metrics call the way of rows out of a pool that was opened."""
    is_written_late: bool
    """Whether the device may still be writing rows that its engine already offers.

    What it is asked here waits for that; a peer that reads the rows by itself would not.
    """

    def follow(self, *streams: Any) -> None:
        """Wait for what the engine has launched on these streams before each access to rows."""
        ...

    def describe(self) -> msgspec.Raw:
        """How a peer can open this pool, in msgpack: None if it cannot."""
        ...

    def open(self, description: msgspec.Raw) -> PeerPool:
        """Open a pool that a peer has described.

        Raises OSError with the reason if that cannot be done here, ValueError for another layout.
        """
        ...

    def copy(self, source: PeerPool, source_rows: Indices, rows: Indices) -> Ticket[bytes]:
        """Copy rows of an opened pool into rows of this one; the ticket has their digest.

        Raises ValueError also if there are more of the ones than of the others.
        """
        ...

    def digest(self, rows: Indices) -> Ticket[bytes]:
        """The digest of rows, as they are once all is written that the engine has launched."""
        ...

    def gather(self, rows: Indices) -> Ticket[Any]:
        """A packed copy of rows in host memory, `len(rows) * row_total` bytes, to be sent."""
        ...

    def scatter(self, rows: Indices, packed: Any) -> Ticket[bytes]:
        """Write a packed copy (any buffer of bytes) into rows; the ticket has its digest.

        The copy may go when the ticket is done. Raises ValueError also if it is not as long as the
        rows need.
        """
        ...
