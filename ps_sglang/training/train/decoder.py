"""Loading the base and a decoder that starts as its copy; with LoRA both are one model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ps_sglang.contract.files import read_object
from ps_sglang.contract.shape import read_shape
from ps_sglang.contract.vocabulary import require_vocabulary
from ps_sglang.errors import CheckpointError
from ps_sglang.extras import require_extra
from ps_sglang.training.train.attention import ATTENTION
from ps_sglang.training.train.base import AdaptedBase, Base, FrozenBase
from ps_sglang.training.train.settings import TrainSettings

# Everything in a block: attention and MLP. The output head stays the base's.
_LORA_TARGETS: Final = "all-linear"


@dataclass(frozen=True)
class Tokenizing:
    """The base's tokenizer and what the encoder must know of the model."""

    tokenizer: Any
    stops: tuple[int, ...]
    context: int


def load_tokenizer(folder: Path) -> Tokenizing:
    """Raises CheckpointError if the tokenizer and the model in `folder` do not fit each other."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    shape = read_shape(folder)
    require_vocabulary(folder)
    stops = _stops(folder, tokenizer)
    if not stops:
        raise CheckpointError(
            f"{folder} names no end-of-text token (eos_token_id in generation_config.json or "
            "config.json, eos_token in tokenizer_config.json); an answer would have no end"
        )
    return Tokenizing(tokenizer, stops, shape.context_length)


def _stops(folder: Path, tokenizer: Any) -> tuple[int, ...]:
    """The tokens at which a server stops, the tokenizer's own first: it ends a chat's turn."""
    named: list[Any] = [tokenizer.eos_token_id]
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            ids = read_object(folder / name).get("eos_token_id")
            named += ids if isinstance(ids, list) else [ids]
    return tuple(dict.fromkeys(token for token in named if token is not None))


def load_pair(folder: Path, settings: TrainSettings, device: torch.device) -> tuple[Any, Base]:
    """The decoder to train, and the base that it reads from.

    Raises CheckpointError for a model whose attention the trainer's mask does not describe.
    """
    shape = read_shape(folder)
    if shape.sliding_window or shape.layer_types:
        raise CheckpointError(
            f"{folder} has layers of sliding-window or linear attention, which the trainer does "
            "not know; choose a base in which every layer attends to everything"
        )
    dtype: torch.dtype = getattr(torch, settings.dtype)
    if not settings.lora_rank:
        return _load(folder, torch.float32), FrozenBase(_load(folder, dtype).to(device))
    decoder = _with_lora(_load(folder, dtype), settings)
    return decoder, AdaptedBase(decoder)


def _load(folder: Path, dtype: torch.dtype) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=ATTENTION)


def _with_lora(model: Any, settings: TrainSettings) -> Any:
    require_extra("train", "--lora-rank")
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.alpha,
        target_modules=_LORA_TARGETS,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)
