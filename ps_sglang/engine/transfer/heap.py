"""Frames of a few megabytes without page faults."""

from __future__ import annotations

import ctypes
import functools
from typing import Final

_KEPT_BYTES: Final = 32 << 20  # glibc's own upper limit for what it would find out by itself
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@functools.cache
def keep_freed_frames() -> None:
    """Have the C library keep the memory of freed frames for the next ones.

    It hands blocks of this size back to the kernel, and asks for them anew, until it has seen
    enough of them; taking the page faults of each frame of pages costs as much as sending it.
    A C library without these settings is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 2 * _KEPT_BYTES)
