"""Weights that several workers of a host have alike, once in memory instead of once each.

The fork server makes an unnamed memory file before it forks. A worker that has loaded its model
puts each large weight there under the digest of its bytes, or finds it there already, and from then
on uses the file's pages in place of its own. They are mapped copy-on-write: whoever loads other
weights in place gets pages of its own, and changes nothing for the others.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from xxhash import xxh3_128_digest

from ps_sglang.engine.settings import SHARE_WEIGHTS

log = logging.getLogger(__name__)

_LEAST_BYTES: Final = 1 << 16
_ENTRY: Final = struct.Struct("16sQQ")
"""Digest, offset in the file and bytes of a weight; the first entry's offset is their count."""
_ENTRIES: Final = 8192
_DATA: Final = _ENTRY.size * _ENTRIES


class _Inherited:
    """What the fork server made for all its forks, None in any other process."""

    file: SharedWeights | None = None


def prepare() -> None:
    """In the fork server: make the file that workers forked later share."""
    _Inherited.file = SharedWeights()


def share(model: torch.nn.Module) -> None:
    """In a worker: share the weights of `model`, if the launcher wants that of this worker."""
    if _Inherited.file is not None and os.environ.get(SHARE_WEIGHTS) == "1":
        _Inherited.file.adopt(model)


class SharedWeights:
    """An unnamed memory file of weights, for the processes that are forked after it is made."""

    def __init__(self) -> None:
        """Raises OSError if the kernel does not hand out such memory."""
        self._fd = os.memfd_create("ps_sglang-weights", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, _DATA)

    def adopt(self, model: torch.nn.Module) -> None:
        """Have the large weights of `model`, which is on the CPU, lie in the file.

        If it cannot take them all, for lack of memory, the model keeps the rest of its own.
        """
        offsets = {}
        try:
            for parameter in model.parameters():
                if parameter.nbytes >= _LEAST_BYTES and parameter.is_contiguous():
                    offsets[parameter] = self._place(_content(parameter.data))
        except OSError as error:
            log.warning("this worker keeps weights of its own: %s", error)
        if not offsets:
            return
        end = max(offset + parameter.nbytes for parameter, offset in offsets.items())
        pages = mmap.mmap(
            self._fd, end, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )
        for parameter, offset in offsets.items():
            shared = torch.frombuffer(
                pages, dtype=parameter.dtype, count=parameter.numel(), offset=offset
            )
            parameter.data = shared.view(parameter.shape)
        _release_freed()

    @property
    def weights(self) -> int:
        """How many weights lie in the file."""
        return self._read(0)[1]

    def _place(self, content: memoryview) -> int:
        """Where `content` lies in the file; it is written there if it is new."""
        digest = xxh3_128_digest(content)
        with self._locked():
            count, end = self.weights, _DATA
            for number in range(1, count + 1):
                found, offset, size = self._read(number)
                if (found, size) == (digest, content.nbytes):
                    return offset
                end = offset + size
            if count + 1 == _ENTRIES:
                raise OSError(f"there is room for {_ENTRIES - 1} shared weights")
            offset = -(-end // mmap.PAGESIZE) * mmap.PAGESIZE
            self._write(content, offset)
            # Counted last: what a killed process has left half written is written over.
            self._enter(count + 1, digest, offset, content.nbytes)
            self._enter(0, b"", count + 1, 0)
            return offset

    def _read(self, number: int) -> tuple[bytes, int, int]:
        entry = os.pread(self._fd, _ENTRY.size, number * _ENTRY.size)
        digest, offset, size = _ENTRY.unpack(entry)
        return digest, offset, size

    def _enter(self, number: int, digest: bytes, offset: int, size: int) -> None:
        entry = _ENTRY.pack(digest, offset, size)
        self._write(memoryview(entry), number * _ENTRY.size)

    def _write(self, content: memoryview, offset: int) -> None:
        while content:  # the kernel takes at most 2 GiB at once
            written = os.pwrite(self._fd, content, offset)
            content, offset = content[written:], offset + written

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among processes; the kernel unlocks for one that dies."""
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)


def _content(weight: torch.Tensor) -> memoryview:
    return memoryview(weight.view(-1).view(torch.uint8).numpy())


def _release_freed() -> None:
    """Hand the memory of the weights that were replaced back to the kernel."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
