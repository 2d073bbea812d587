"""Shared memory that another process maps, and every way in which it cannot."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ps_sglang.engine.transfer.shared_pool import (
    AttachedPool,
    PoolDescriptor,
    SharedMemory,
    UnreachablePoolError,
    describe,
)

SIZE = 1 << 20


def described(memory: SharedMemory, offset: int = 0, length: int = SIZE) -> PoolDescriptor:
    start = np.frombuffer(memory.buffer, dtype=np.uint8).ctypes.data
    descriptor = describe([start + offset], [length])
    assert descriptor is not None
    return descriptor


_READER = """
import ctypes, sys
import msgspec
from ps_sglang.engine.transfer.shared_pool import AttachedPool, PoolDescriptor
pool = AttachedPool(msgspec.json.decode(sys.stdin.buffer.read(), type=PoolDescriptor))
sys.stdout.buffer.write(ctypes.string_at(pool.addresses[0], pool.lengths[0]))
"""


def test_another_process_reads_what_is_written() -> None:
    memory = SharedMemory(SIZE)
    memory.buffer[1000:1005] = b"pages"
    descriptor = msgspec.json.encode(described(memory, offset=1000, length=5))
    done = subprocess.run(
        [sys.executable, "-c", _READER], input=descriptor, capture_output=True, check=True
    )
    assert done.stdout == b"pages"


def test_a_mapping_sees_later_writes_and_outlives_its_owner() -> None:
    memory = SharedMemory(SIZE)
    pool = AttachedPool(described(memory))
    memory.buffer[7] = 9
    del memory
    gc.collect()
    assert ctypes.string_at(pool.addresses[0], 8) == bytes(7) + b"\x09"


def test_memory_goes_with_its_last_user() -> None:
    memory = SharedMemory(SIZE)
    fd = described(memory).fd
    part = memory.buffer[100:200]
    del memory
    gc.collect()
    assert os.fstat(fd)  # a part is in use
    del part
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_closed_mapping_is_gone() -> None:
    memory = SharedMemory(SIZE)

    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:ps_sglang-kv")

    before = mappings()
    pool = AttachedPool(described(memory))
    assert mappings() == before + 1
    pool.close()
    assert mappings() == before


def test_it_costs_what_was_written() -> None:
    memory = SharedMemory(256 << 20)
    descriptor = described(memory, length=256 << 20)
    pool = AttachedPool(descriptor)

    def allocated() -> int:
        return os.stat(f"/proc/self/fd/{descriptor.fd}").st_blocks * 512

    assert allocated() <= 4 << 10  # the page that identifies it
    memory.buffer[100 << 20] = 1
    assert allocated() <= 8 << 10
    pool.close()


def test_buffers_elsewhere_are_not_described() -> None:
    memory = SharedMemory(SIZE)
    start = np.frombuffer(memory.buffer, dtype=np.uint8).ctypes.data
    other = np.zeros(100, dtype=np.uint8)
    assert describe([start, other.ctypes.data], [10, 10]) is None
    assert describe([start + SIZE - 10], [11]) is None
    assert describe([start + SIZE - 10], [10]) is not None


def test_the_memory_cannot_be_resized() -> None:
    fd = described(memory := SharedMemory(SIZE)).fd
    for size in (0, 2 * SIZE):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    assert memory.buffer.nbytes == SIZE


def test_a_mapping_cannot_be_written() -> None:
    memory = SharedMemory(SIZE)
    pool = AttachedPool(described(memory))
    first = f"{pool.addresses[0] - 4096:x}-"
    (mapping,) = (
        line for line in Path("/proc/self/maps").read_text().splitlines() if line.startswith(first)
    )
    assert mapping.split()[1] == "r--s"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"boot_id": "another"}, "another host"),
        ({"pid": 1 << 22}, "cannot be opened: No such file"),
        ({"fd": 1 << 20}, "cannot be opened: No such file"),
        ({"nonce": bytes(32)}, "other memory than was described"),
        ({"size": 2 * SIZE}, "cannot be mapped: it has .* bytes, not"),
        ({"offsets": [4097]}, "is outside it"),
        ({"offsets": [-1]}, "is outside it"),
    ],
)
def test_what_cannot_be_mapped_is_refused_by_name(change: dict[str, object], reason: str) -> None:
    memory = SharedMemory(SIZE)
    descriptor = msgspec.structs.replace(described(memory), **change)
    with pytest.raises(UnreachablePoolError, match=reason):
        AttachedPool(descriptor)
    assert memory.buffer.nbytes == SIZE


def test_another_file_of_the_same_number_is_refused(tmp_path: Path) -> None:
    """A worker that was restarted, or whose number another process has by now."""
    memory = SharedMemory(SIZE)
    file = tmp_path / "file"
    file.write_bytes(bytes(SIZE + 4096))
    read_end, write_end = os.pipe()
    with file.open() as opened:
        for fd in (opened.fileno(), read_end):
            descriptor = msgspec.structs.replace(described(memory), fd=fd)
            with pytest.raises(UnreachablePoolError, match="cannot be mapped"):
                AttachedPool(descriptor)
    os.close(read_end)
    os.close(write_end)
