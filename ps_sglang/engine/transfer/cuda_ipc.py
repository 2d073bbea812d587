"""KV pools on a GPU that other processes of the same host can map (CUDA's legacy IPC).

A process that may not, as in another container, finds out by trying, and pages go over TCP.
Memory that PyTorch took in expandable segments cannot be shared this way.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from cuda.bindings import driver

from ps_sglang.engine.transfer.shared_pool import UnreachablePoolError, boot_id

_HANDLE_BYTES: Final = 64  # CU_IPC_HANDLE_SIZE
_PEER_ACCESS: Final = driver.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS


class CudaPoolDescriptor(msgspec.Struct, frozen=True):
    """What a peer needs to map a pool that lies in one or more allocations."""

    boot_id: str
    handles: list[bytes]  # one for each allocation
    allocations: list[int]  # in which each buffer lies, a number in `handles`
    offsets: list[int]  # of each buffer from the start of its allocation
    lengths: list[int]  # bytes of each buffer


def describe(addresses: Sequence[int], lengths: Sequence[int]) -> CudaPoolDescriptor:
    """How peers can map these buffers of this process.

    Raises UnreachablePoolError if they cannot. The current context is that of their device.
    """
    numbers: dict[int, int] = {}
    handles: list[bytes] = []
    allocations, offsets = [], []
    for address in addresses:
        start, _ = _allocation(address)
        if start not in numbers:
            numbers[start] = len(handles)
            handles.append(handle_bytes(_checked(driver.cuIpcGetMemHandle(start))))
        allocations.append(numbers[start])
        offsets.append(address - start)
    return CudaPoolDescriptor(boot_id(), handles, allocations, offsets, list(lengths))


class MappedAllocations:
    """A peer's pool, mapped for as long as this object lives."""

    def __init__(self, descriptor: CudaPoolDescriptor) -> None:
        """Map it for the device of the current context.

        Raises UnreachablePoolError if it cannot be mapped, or is not what was described.
        """
        if descriptor.boot_id != boot_id():
            raise UnreachablePoolError("it is on another host")
        starts: list[int] = []
        self._close = weakref.finalize(self, _unmap, starts)
        for handle in descriptor.handles:
            opened = handle_of(handle)
            starts.append(int(_checked(driver.cuIpcOpenMemHandle(opened, _PEER_ACCESS.value))))
        self.addresses: list[int] = []
        self.lengths = descriptor.lengths
        buffers = zip(descriptor.allocations, descriptor.offsets, descriptor.lengths, strict=True)
        for number, offset, length in buffers:
            if not 0 <= number < len(starts):
                raise UnreachablePoolError(f"a buffer lies in allocation {number}, which is none")
            _, size = _allocation(starts[number])
            if not 0 <= offset <= offset + length <= size:
                raise UnreachablePoolError(f"a buffer of {length} bytes at {offset} is outside it")
            self.addresses.append(starts[number] + offset)


def handle_bytes(handle: Any) -> bytes:
    """What a handle holds; not every release of the bindings has a name for it."""
    return ctypes.string_at(handle.getPtr(), _HANDLE_BYTES)


def handle_of(content: bytes) -> Any:
    """The handle that holds this.

    Raises UnreachablePoolError if it is none.
    """
    if len(content) != _HANDLE_BYTES:
        raise UnreachablePoolError(f"{len(content)} bytes are no handle of CUDA")
    handle = driver.CUipcMemHandle()
    ctypes.memmove(handle.getPtr(), content, _HANDLE_BYTES)
    return handle


def _allocation(address: int) -> tuple[int, int]:
    """Start and bytes of the allocation that an address lies in."""
    start, size = _checked(driver.cuMemGetAddressRange(address))
    return int(start), int(size)


def _unmap(starts: list[int]) -> None:
    for start in starts:
        driver.cuIpcCloseMemHandle(start)


def _checked(answer: tuple[Any, ...]) -> Any:
    status, *values = answer
    if status != driver.CUresult.CUDA_SUCCESS:
        raise UnreachablePoolError(f"CUDA says {status.name}")
    return values[0] if len(values) == 1 else values
