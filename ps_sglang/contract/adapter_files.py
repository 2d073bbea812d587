"""A LoRA adapter as peft saves it: its config, its tensors, and a digest of both."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ps_sglang.contract.files import ADAPTER_CONFIG, digest, read_object
from ps_sglang.contract.fingerprint import weights_digest
from ps_sglang.contract.tensors import Tensor, read_header
from ps_sglang.errors import CheckpointError

ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
_OLD_WEIGHTS: Final = "adapter_model.bin"
_WHOLE_MODEL: Final = ("model.safetensors", "model.safetensors.index.json")
_FACTOR: Final = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight")


@dataclass(frozen=True)
class AdapterConfig:
    """What a worker must know of an adapter: it adds `alpha / rank` times B A to the weights of
    `target_modules`, which are the last parts of their names, sorted."""

    rank: int
    alpha: float
    target_modules: tuple[str, ...]


@dataclass(frozen=True)
class AdapterFiles:
    """The adapter in `folder`: `items` are those of its config file, `factors` the tensors A and B
    of each module that it changes, `others` the names of all other tensors."""

    folder: Path
    config: AdapterConfig
    items: dict[str, Any]
    factors: dict[str, dict[str, Tensor]]
    others: list[str]

    @classmethod
    def read(cls, folder: Path) -> AdapterFiles:
        """Reads no weights. Raises CheckpointError if a file is missing or damaged."""
        items = read_object(folder / ADAPTER_CONFIG)
        factors: dict[str, dict[str, Tensor]] = {}
        others = []
        for tensor in _tensors(folder):
            if match := _FACTOR.fullmatch(tensor.name):
                factors.setdefault(match["module"], {})[match["half"]] = tensor
            else:
                others.append(tensor.name)
        config = folder / ADAPTER_CONFIG
        rank: Any = items.get("r")
        alpha: Any = items.get("lora_alpha")
        if type(rank) is not int or rank < 1:
            raise CheckpointError(f"{config}: r is {rank!r}, must be a whole number above 0")
        if type(alpha) not in (int, float) or not math.isfinite(alpha):
            raise CheckpointError(f"{config}: lora_alpha is {alpha!r}, must be a number")
        modules = tuple(sorted({module.rpartition(".")[2] for module in factors}))
        return cls(folder, AdapterConfig(rank, alpha, modules), items, factors, others)


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds a LoRA adapter; one that holds a whole model, too, is that model."""
    whole = any((folder / name).is_file() for name in _WHOLE_MODEL)
    return (folder / ADAPTER_CONFIG).is_file() and not whole


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Raises CheckpointError if a file of the adapter is missing or damaged."""
    return AdapterFiles.read(folder).config


def adapter_digest(folder: Path) -> str:
    """`a1:` and a digest of the adapter's weights and scale that does not read them whole.

    See `weights_digest`. Raises CheckpointError.
    """
    config = read_adapter_config(folder)
    return digest("a1", [weights_digest(folder), config.rank, config.alpha])


def _tensors(folder: Path) -> list[Tensor]:
    if not (folder / ADAPTER_WEIGHTS).is_file() and (folder / _OLD_WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder} has its weights in {_OLD_WEIGHTS}, which is not read; load the adapter with "
            f"peft and save it again, which writes {ADAPTER_WEIGHTS}"
        )
    return read_header(folder / ADAPTER_WEIGHTS)
