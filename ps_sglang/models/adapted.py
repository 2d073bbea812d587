"""A base model with a LoRA adapter at work, beside the base itself: both have the same weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ps_sglang.contract import AdapterFiles
from ps_sglang.contract.adapter_files import ADAPTER_WEIGHTS


class Adapted:
    """Called like `model`, answers as the adapter in `folder` makes it; `model` stays the base.

    The adapter is added to the outputs of its modules, as an engine does it, not merged into their
    weights, so that many of them take no more memory than one. Raises CheckpointError.
    """

    def __init__(self, model: torch.nn.Module, folder: Path) -> None:
        adapter = AdapterFiles.read(folder)
        scale = adapter.config.alpha / adapter.config.rank
        weights = load_file(folder / ADAPTER_WEIGHTS)
        self._model = model
        self._factors = []
        for name, factors in adapter.factors.items():
            module = model.get_submodule(name)
            down, up = (weights[factors[half].name].to(module.weight) for half in "AB")
            self._factors.append((module, partial(_add, down, up * scale)))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        hooks = [module.register_forward_hook(add) for module, add in self._factors]
        try:
            return self._model(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()


def _add(
    down: torch.Tensor,
    up: torch.Tensor,
    module: torch.nn.Module,
    inputs: tuple[torch.Tensor, ...],
    output: torch.Tensor,
) -> torch.Tensor:
    return output + inputs[0] @ down.T @ up.T
