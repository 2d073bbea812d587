"""KV pools on a CUDA GPU: one kernel a batch, on a stream of its own, whose tickets are done late.

That stream waits for what the engine has launched so far. So pages are read when they are written,
and a page that has just been given to a request is filled after the last step of the one before.
Peers of the same host read each other's pools (`cuda_ipc`). To other hosts a batch goes through
pinned memory. Nothing of this is imported where the KV pool is in host memory.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from ps_sglang.engine.transfer import cuda_ipc, row_digest
from ps_sglang.engine.transfer.cuda_rows import RowLayout
from ps_sglang.engine.transfer.page_memory import Done, Ticket
from ps_sglang.engine.transfer.shared_pool import UnreachablePoolError

if TYPE_CHECKING:
    from ps_sglang.engine.transfer.memory import Indices

logger = logging.getLogger(__name__)

T = TypeVar("T")

_Int64s = npt.NDArray[np.int64]


class CudaTicket(Generic[T]):
    """Work that a stream does; `read` makes the value of what it left in pinned memory."""

    def __init__(self, event: Any, read: Callable[[], T]) -> None:
        self._event, self._read = event, read

    def done(self) -> bool:
        """See `Ticket.done`."""
        return bool(self._event.query())

    def wait(self) -> None:
        """See `Ticket.wait`."""
        self._event.synchronize()

    @property
    def value(self) -> T:
        """See `Ticket.value`."""
        return self._read()


class _Buffers:
    """Buffers of a GPU whose equally numbered rows belong together."""

    def __init__(self, addresses: Sequence[int], rows: int, device: Any) -> None:
        self.rows = rows
        self.addresses = _uploaded(np.array(addresses, dtype=np.int64), device)

    def checked(self, rows: Indices) -> _Int64s:
        numbers = np.ascontiguousarray(rows, dtype=np.int64)
        # As unsigned numbers, negative ones are far too large.
        if len(numbers) and numbers.view(np.uint64).max() >= self.rows:
            raise ValueError(f"rows {numbers.min()}..{numbers.max()} of {self.rows}")
        return numbers


class CudaPeerPool(_Buffers):
    """A peer's pool, mapped for as long as this object lives."""

    def __init__(self, mapped: cuda_ipc.MappedAllocations, rows: int, device: Any) -> None:
        super().__init__(mapped.addresses, rows, device)
        self._mapped = mapped


class CudaMemory:
    """A `PageMemory` on one GPU."""

    path = "cuda_ipc"
    is_written_late = True

    def __init__(
        self, addresses: Sequence[int], lengths: Sequence[int], row_bytes: Sequence[int], *,
        gpu: int, wake: Callable[[], None],
    ) -> None:  # fmt: skip
        """Work on memory of device `gpu` that someone else owns and keeps.

        `addresses` are the starts of the buffers, `lengths` their bytes, and `row_bytes` the bytes
        of one row in each. `wake` is called, from a thread of this object, when a ticket is done.

        Raises ValueError on another GPU than one of CUDA, or if a row is not whole lines.
        """
        if torch.version.cuda is None:
            raise ValueError("backend zmq moves pages of CUDA GPUs only: choose mooncake or nixl")
        self.row_bytes, self.row_total = list(row_bytes), sum(row_bytes)
        self._lengths = list(lengths)
        self._device = torch.device("cuda", gpu)
        self._layout = RowLayout(row_bytes, self._device)
        self._widths = np.array(row_bytes, dtype=np.int64)
        self._start = list(addresses)
        self._buffers = _Buffers(addresses, self._row_count(lengths), self._device)
        self._stream = torch.cuda.Stream(self._device)
        self._followed: tuple[Any, ...] = (torch.cuda.default_stream(self._device),)
        self._launched: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(
            target=_watch, args=(self._launched, wake), name="kv-tickets", daemon=True
        ).start()

    def follow(self, *streams: Any) -> None:
        """See `PageMemory.follow`."""
        self._followed = (torch.cuda.default_stream(self._device), *streams)

    def describe(self) -> msgspec.Raw:
        """See `PageMemory.describe`."""
        descriptor = None
        try:
            with torch.cuda.device(self._device):
                descriptor = cuda_ipc.describe(self._start, self._lengths)
        except UnreachablePoolError as error:
            logger.warning("No peer can map the KV pool, so its pages go over TCP: %s", error)
        return msgspec.Raw(msgspec.msgpack.encode(descriptor))

    def open(self, description: msgspec.Raw) -> CudaPeerPool:
        """See `PageMemory.open`."""
        kind = cuda_ipc.CudaPoolDescriptor | None
        try:
            descriptor = msgspec.msgpack.decode(description, type=kind)
        except msgspec.MsgspecError as error:
            raise UnreachablePoolError(f"it is not on a GPU ({error})") from error
        if descriptor is None:
            raise UnreachablePoolError("no peer can map it")
        if len(descriptor.lengths) != len(self.row_bytes):
            raise ValueError(f"{len(descriptor.lengths)} buffers, not {len(self.row_bytes)}")
        with torch.cuda.device(self._device):
            mapped = cuda_ipc.MappedAllocations(descriptor)
            return CudaPeerPool(mapped, self._row_count(mapped.lengths), self._device)

    def copy(self, source: CudaPeerPool, source_rows: Indices, rows: Indices) -> Ticket[bytes]:
        """See `PageMemory.copy`."""
        numbers, source_numbers = self._buffers.checked(rows), source.checked(source_rows)
        if len(numbers) != len(source_numbers):
            raise ValueError(f"{len(source_numbers)} rows to copy into {len(numbers)}")
        with self._after_the_engine():
            # The ticket keeps the source mapped.
            return self._move(source, source_numbers, self._buffers, numbers, keep=source)

    def digest(self, rows: Indices) -> Ticket[bytes]:
        """See `PageMemory.digest`."""
        numbers = self._buffers.checked(rows)
        with self._after_the_engine():
            return self._move(self._buffers, numbers, self._buffers, numbers, write=False)

    def gather(self, rows: Indices) -> Ticket[Any]:
        """See `PageMemory.gather`."""
        numbers = self._buffers.checked(rows)
        packed = _pinned(len(numbers) * self.row_total, torch.uint8)
        if len(numbers) == 0:
            return Done(packed.numpy())
        with self._after_the_engine():
            staged = torch.empty(packed.shape, dtype=torch.uint8, device=self._device)
            self._move(self._buffers, numbers, *self._as_rows(staged, len(numbers)))
            packed.copy_(staged, non_blocking=True)
            return self._ticket(packed.numpy)

    def scatter(self, rows: Indices, packed: Any) -> Ticket[bytes]:
        """See `PageMemory.scatter`."""
        numbers = self._buffers.checked(rows)
        bytes_ = np.frombuffer(packed, dtype=np.uint8)
        if bytes_.size != len(numbers) * self.row_total:
            raise ValueError(f"{bytes_.size} bytes, not {len(numbers)} rows x {self.row_total}")
        with self._after_the_engine():
            staged = _uploaded(bytes_, self._device)
            return self._move(*self._as_rows(staged, len(numbers)), self._buffers, numbers)

    @contextlib.contextmanager
    def _after_the_engine(self) -> Iterator[None]:
        """Launch on this memory's stream, after all that the engine has launched so far."""
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            for stream in self._followed:
                self._stream.wait_stream(stream)
            yield

    def _move(
        self, source: _Buffers, source_rows: _Int64s, target: _Buffers, rows: _Int64s, *,
        write: bool = True, keep: Any = None,
    ) -> Ticket[bytes]:  # fmt: skip
        if len(rows) == 0:
            nothing = np.zeros(row_digest.WORDS, np.uint64)
            return Done(row_digest.from_sums(nothing, nothing, 0))
        numbers = _uploaded(np.concatenate((source_rows, rows)), self._device)
        source_numbers, target_numbers = numbers.chunk(2)
        sums = self._layout.move(
            source.addresses, source_numbers, target.addresses, target_numbers, write=write
        )
        left = _pinned(sums.numel(), torch.int64)
        left.copy_(sums.flatten(), non_blocking=True)
        lines = self._layout.line_count(len(rows))

        def read(_kept: Any = keep) -> bytes:
            products, words = left.numpy().view(np.uint64).reshape(2, row_digest.WORDS)
            return row_digest.from_sums(products, words, lines)

        return self._ticket(read)

    def _ticket(self, read: Callable[[], T]) -> CudaTicket[T]:
        event = torch.cuda.Event(blocking=True)  # who waits for it sleeps
        event.record(self._stream)
        self._launched.put(event)
        return CudaTicket(event, read)

    def _as_rows(self, packed: Any, rows: int) -> tuple[_Buffers, _Int64s]:
        """A packed copy on the device as buffers, and the numbers of its rows."""
        starts = packed.data_ptr() + (np.cumsum(self._widths) - self._widths) * rows
        return _Buffers(starts.tolist(), rows, self._device), np.arange(rows, dtype=np.int64)

    def _row_count(self, lengths: Sequence[int]) -> int:
        sizes = zip(lengths, self.row_bytes, strict=True)
        return min((length // width for length, width in sizes), default=0)


def _pinned(size: int, dtype: Any) -> Any:
    return torch.empty(size, dtype=dtype, pin_memory=True)


def _uploaded(array: npt.NDArray[Any], device: Any) -> Any:
    """A copy on the device, made by the current stream: the host does not wait for it."""
    pinned = _pinned(array.size, torch.from_numpy(array[:0].copy()).dtype)
    pinned.numpy()[:] = array
    return pinned.to(device, non_blocking=True)


def _watch(launched: queue.SimpleQueue[Any], wake: Callable[[], None]) -> None:
    """Ring once for each ticket when it is done; they are done in the order of their launch."""
    while True:
        launched.get().synchronize()
        wake()
