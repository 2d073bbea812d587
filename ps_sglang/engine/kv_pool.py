"""A KV pool on the CPU whose pages cost memory only once they hold something."""

from __future__ import annotations

import math
import mmap
from typing import Any

import torch

from ps_sglang.engine.compat.memory import MHATokenToKVPool


class LazyKVPool(MHATokenToKVPool):  # type: ignore[misc]
    """SGLang's pool of keys and values, not written to when it is made.

    `torch.zeros` writes every page: with several workers on one machine that is most of their
    memory and a good part of their start-up, before the first request.
    """

    def _create_buffers_normal(self) -> None:
        k_shape, v_shape = self._kv_buffer_shapes()
        if k_shape != v_shape or self.kv_cache_layout != "nhd":
            super()._create_buffers_normal()
            return
        # As in SGLang, K and V of a layer are halves of one allocation, padded to whole pages.
        rows = k_shape[0]
        padded = math.ceil(rows / self.page_size) * self.page_size
        layers = [
            untouched_zeros((2, padded, *k_shape[1:]), self.store_dtype)
            for _ in range(self.layer_num)
        ]
        self.k_buffer = [layer[0, :rows] for layer in layers]
        self.v_buffer = [layer[1, :rows] for layer in layers]


def untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    """A zero tensor in memory that the kernel hands out, zeroed, page by page on first write."""
    size = math.prod(shape) * dtype.itemsize
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
