"""A KV pool on the CPU that costs memory only as it fills, and that peers on the host can read."""

from __future__ import annotations

import math
from typing import Any, Final

import torch

from ps_sglang.engine.compat.memory import MHATokenToKVPool
from ps_sglang.engine.transfer.shared_pool import SharedMemory

_ALIGNMENT: Final = 4096  # so that no page of memory belongs to two layers


class LazyKVPool(MHATokenToKVPool):  # type: ignore[misc]
    """SGLang's pool of keys and values, in shared memory, and not written to when it is made.

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
        layers = zero_tensors(self.layer_num, (2, padded, *k_shape[1:]), self.store_dtype)
        self.k_buffer = [layer[0, :rows] for layer in layers]
        self.v_buffer = [layer[1, :rows] for layer in layers]


def zero_tensors(count: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[Any]:
    """Zero tensors of one shape in one shared memory, which live as long as any of them."""
    elements = math.prod(shape)
    spacing = math.ceil(elements * dtype.itemsize / _ALIGNMENT) * _ALIGNMENT
    buffer = SharedMemory(count * spacing).buffer
    return [
        torch.frombuffer(buffer, dtype=dtype, count=elements, offset=number * spacing).view(shape)
        for number in range(count)
    ]
