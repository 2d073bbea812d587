"""Writing Hugging Face checkpoint folders (config, weights, tokenizer) without torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from ps_sglang.contract.files import SIDE_FILES

Tensors = dict[str, npt.NDArray[np.float32]]

WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer as a checkpoint folder holds it."""

    tokenizer: Tokenizer
    chat_template: str
    bos_token: str
    eos_token: str
    pad_token: str
    context_length: int

    def save(self, folder: Path) -> None:
        self.tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "pad_token": self.pad_token,
            "model_max_length": self.context_length,
            "clean_up_tokenization_spaces": False,
        }
        _write_json(folder / "tokenizer_config.json", config)


def write_checkpoint(
    folder: Path, config: Mapping[str, Any], tensors: Tensors, tokenizer: TokenizerFiles
) -> None:
    """Fill `folder` with everything that transformers and SGLang load."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config)
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    _write_json(folder / "generation_config.json", {name: config[name] for name in special})
    tokenizer.save(folder)
    _write_weights(folder, tensors)


def write_sibling(base: Path, folder: Path, tensors: Tensors) -> None:
    """Fill `folder` with other weights for the model in `base`."""
    folder.mkdir(parents=True, exist_ok=True)
    copy_side_files(base, folder)
    _write_weights(folder, tensors)


def copy_side_files(base: Path, folder: Path) -> None:
    """Copy everything but the weights, byte for byte: decoders share it with their base."""
    for name in SIDE_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)


def _write_weights(folder: Path, tensors: Tensors) -> None:
    # transformers refuses a safetensors file whose metadata does not name the framework.
    save_file(tensors, str(folder / WEIGHTS_FILE), metadata={"format": "pt"})


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
