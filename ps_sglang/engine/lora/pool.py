"""SGLang's LoRA layers and pool on a machine without CUDA."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ps_sglang.engine.hooking import after, around
from ps_sglang.engine.lora import NAME


class Unpinned(TorchFunctionMode):
    """Within it, PyTorch makes plain tensors where pinned ones are asked for.

    Pinning is CUDA's: without CUDA it raises. SGLang's LoRA asks for it whatever the device.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called in place of every function of PyTorch."""
        del types
        if func is torch.Tensor.pin_memory:
            return args[0]
        wanted = {name: value for name, value in (kwargs or {}).items() if name != "pin_memory"}
        return func(*args, **wanted)


def _unpinned(device: torch.device) -> AbstractContextManager[object]:
    return Unpinned() if device.type == "cpu" else nullcontext()


@around(
    "lora.lora_manager.LoRAManager.init_state",
    "self", "max_lora_rank", "target_modules", "lora_paths",
)  # fmt: skip
def init_state(original: Callable[..., None], manager: Any, *args: Any, **kwargs: Any) -> None:
    """Around `LoRAManager.init_state`: without CUDA the layers pin no memory."""
    with _unpinned(manager.device):
        original(manager, *args, **kwargs)


@around(
    "lora.backend.torch_backend.TorchNativeLoRABackend.prepare_lora_batch",
    "self", "forward_batch", "weight_indices", "lora_ranks", "scalings", "use_cuda_graph",
    "use_prefill_cuda_graph",
)  # fmt: skip
def prepare_lora_batch(
    original: Callable[..., None], backend: Any, *args: Any, **kwargs: Any
) -> None:
    """Around `TorchNativeLoRABackend.prepare_lora_batch`: without CUDA it pins no memory."""
    with _unpinned(backend.device):
        original(backend, *args, **kwargs)


@after("lora.lora_manager.LoRAManager.init_memory_pool", "self")
def init_memory_pool(_result: None, manager: Any) -> None:
    """After `LoRAManager.init_memory_pool`: the backend `grouped` stores B in its own order."""
    if manager.lora_backend.name == NAME:
        manager.lora_backend.adopt(manager.memory_pool)
