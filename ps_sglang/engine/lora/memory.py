"""Zeros that cost memory only where they are written: slots of adapters that are never filled."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def lazy_zeros(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor on the CPU; `torch.zeros` writes every page of it at once."""
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


class LazyZeros(TorchFunctionMode):  # type: ignore[misc]
    """Within it, `torch.zeros(shape, dtype=..., device=...)` makes lazy zeros on the CPU."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called in place of every function of PyTorch."""
        del types
        if func is torch.zeros:
            assert kwargs is not None
            (shape,) = args
            return lazy_zeros(shape, kwargs["dtype"])
        return func(*args, **(kwargs or {}))
