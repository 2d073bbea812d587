"""KV pools in memory that other workers of the same host and user can map and read.

The memory is an unnamed file (memfd): it goes with its last user, however that one ends, and
costs nothing where nothing was written. A peer opens it through `/proc`. Whether that works
is found by trying: another host, container or user, or a worker that has exited, all end in
`UnreachablePoolError`, and pages go over TCP instead.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import secrets
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np

_NONCE_BYTES: Final = 32
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class UnreachablePoolError(OSError):
    """The memory of a pool cannot be mapped here; the message says why."""


class PoolDescriptor(msgspec.Struct, frozen=True):
    """What a peer needs to map a pool, and to be sure that it is that pool."""

    boot_id: str
    pid: int
    fd: int
    size: int  # bytes
    nonce: bytes  # also stands in the memory's first bytes
    offsets: list[int]  # of each buffer from the start of the memory
    lengths: list[int]  # bytes of each buffer


class SharedMemory:
    """Zeroed memory of this process that peers can map. It lives while `buffer` is used."""

    def __init__(self, size: int) -> None:
        """Reserve `size` bytes; pages of it exist once they are written.

        Raises OSError if the kernel does not hand out such memory.
        """
        total = mmap.PAGESIZE + size  # the first page identifies the memory
        fd = os.memfd_create("ps_sglang-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, total)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)  # it cannot shrink under a reader's feet
            memory = _with_huge_pages(mmap.mmap(fd, total))
        except BaseException:
            os.close(fd)
            raise
        nonce = secrets.token_bytes(_NONCE_BYTES)
        memory[:_NONCE_BYTES] = nonce
        self.buffer = memoryview(memory)[mmap.PAGESIZE :]
        """The `size` bytes, page-aligned."""
        _shared[memory] = _Identity(fd, total, nonce)
        weakref.finalize(memory, os.close, fd)


class _Identity(NamedTuple):
    fd: int
    size: int
    nonce: bytes


_shared: Final = weakref.WeakKeyDictionary[mmap.mmap, _Identity]()  # of this process


def describe(addresses: Sequence[int], lengths: Sequence[int]) -> PoolDescriptor | None:
    """How peers can map these buffers of this process; None if they are not in shared memory.

    `addresses` are the starts of the buffers, `lengths` their bytes.
    """
    for memory, (fd, size, nonce) in _shared.items():
        start = _address(memory)
        offsets = [address - start for address in addresses]
        ends = [offset + length for offset, length in zip(offsets, lengths, strict=True)]
        if min(offsets, default=0) >= 0 and max(ends, default=0) <= size:
            return PoolDescriptor(
                boot_id=boot_id(),
                pid=os.getpid(),
                fd=fd,
                size=size,
                nonce=nonce,
                offsets=offsets,
                lengths=list(lengths),
            )
    return None


class AttachedPool:
    """A peer's pool, mapped for reading."""

    def __init__(self, descriptor: PoolDescriptor) -> None:
        """Map the pool.

        Raises UnreachablePoolError if it cannot be mapped, or is not the memory described.
        """
        if descriptor.boot_id != boot_id():
            raise UnreachablePoolError("it is on another host")
        for offset, length in zip(descriptor.offsets, descriptor.lengths, strict=True):
            if not 0 <= offset <= offset + length <= descriptor.size:
                raise UnreachablePoolError(f"a buffer of {length} bytes at {offset} is outside it")
        path = f"/proc/{descriptor.pid}/fd/{descriptor.fd}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise UnreachablePoolError(f"{path} cannot be opened: {error.strerror}") from error
        try:
            self._memory = _map(fd, descriptor.size)
        except OSError as error:
            raise UnreachablePoolError(f"{path} cannot be mapped: {error.strerror}") from error
        finally:
            os.close(fd)
        if not secrets.compare_digest(self._memory[:_NONCE_BYTES], descriptor.nonce):
            self.close()
            raise UnreachablePoolError(f"{path} is other memory than was described")
        start = _address(self._memory)
        self.addresses = [start + offset for offset in descriptor.offsets]
        self.lengths = descriptor.lengths

    def close(self) -> None:
        """Unmap it. Its addresses may not be used after that."""
        self._memory.close()


def _map(fd: int, size: int) -> mmap.mmap:
    if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        raise OSError(errno.EPERM, "its size is not sealed")
    if os.fstat(fd).st_size != size:
        raise OSError(errno.EINVAL, f"it has {os.fstat(fd).st_size} bytes, not {size}")
    return _with_huge_pages(mmap.mmap(fd, size, prot=mmap.PROT_READ))


def _with_huge_pages(memory: mmap.mmap) -> mmap.mmap:
    """`memory`, in huge pages where the system allows them for shared memory (`shmem_enabled`):
    scattered tokens then cost no page walks."""
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _address(memory: mmap.mmap) -> int:
    return int(np.frombuffer(memory, dtype=np.uint8).ctypes.data)


def boot_id() -> str:
    """What tells this host, as it runs since its start, from any other."""
    return _BOOT_ID.read_text().strip()
