"""The finished decoder as a checkpoint folder that engines load, with its manifest."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from ps_sglang.contract import MANIFEST_FILE, Manifest, write_manifest
from ps_sglang.contract.tensors import read_tensors
from ps_sglang.errors import UsageError
from ps_sglang.models import NamedModel
from ps_sglang.models.checkpoint import copy_side_files
from ps_sglang.training.train.saving import RESUME, saving

ADAPTER: Final = "adapter"
# With these warnings peft leaves a part of the adapter out.
_NOT_MERGED_WHOLE: Final = (
    "Found missing adapter keys",
    "Model (has|with) `tie_word_embeddings=True`",
)
_DTYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def export(
    model: Any,
    weights: dict[str, torch.Tensor] | None,
    base: NamedModel,
    out: Path,
    manifest: Manifest,
) -> None:
    """Write the decoder to `out`, and a LoRA decoder's adapter to `out/adapter`.

    `weights` are those to write where `model` has only pieces of them. A LoRA `model` is merged in
    place. Each file appears whole and the manifest last. Raises TrainingError if that fails.
    """
    if adapter := getattr(model, "peft_config", None):
        # A path of this machine means nothing elsewhere; the manifest says which base it is.
        for config in adapter.values():
            config.base_model_name_or_path = base.name
        _write(out / ADAPTER, manifest, lambda folder: _write_adapter(model, folder))
        # Merged in float32: bfloat16 would round the sum once more.
        model = model.float().merge_and_unload()
    weights = weights or model.state_dict()
    _write(out, manifest, lambda folder: _write_model(model, weights, base.path, folder))


def merge_adapter(base: NamedModel, adapter: Path, out: Path, manifest: Manifest | None) -> None:
    """Write the whole model that `adapter` makes of `base`, with `manifest` if there is one.

    Raises UsageError for an adapter that peft cannot merge, and TrainingError if writing fails.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    try:
        with warnings.catch_warnings():
            for message in _NOT_MERGED_WHOLE:
                warnings.filterwarnings("error", message)
            model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    except (ValueError, TypeError, KeyError, RuntimeError, OSError, UserWarning) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"peft cannot merge {adapter} into {base.path}: {reason}") from error
    weights = model.state_dict()
    mend = "make room, or give another folder"
    _write(out, manifest, lambda folder: _write_model(model, weights, base.path, folder), mend)


def _write_adapter(model: Any, folder: Path) -> None:
    # Embeddings are never trained; left to itself peft asks a hub whether they might have been.
    model.save_pretrained(folder, save_embedding_layers=False)
    # An empty form of a model card.
    (folder / "README.md").unlink(missing_ok=True)


def _write_model(model: Any, weights: dict[str, torch.Tensor], base: Path, folder: Path) -> None:
    dtype = _stored_dtype(base)
    stored = {name: weight.to(dtype) for name, weight in weights.items()}
    model.save_pretrained(folder, state_dict=stored)
    copy_side_files(base, folder)


def _stored_dtype(base: Path) -> torch.dtype:
    """What the base's weights are stored in; float32 for a quantised one."""
    stored = {tensor.dtype for tensor in read_tensors(base).values()}
    return _DTYPES.get(stored.pop(), torch.float32) if len(stored) == 1 else torch.float32


def _write(
    out: Path, manifest: Manifest | None, fill: Callable[[Path], object], mend: str = RESUME
) -> None:
    partial = out / ".partial"
    with saving(out, mend=mend):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            fill(partial)
            if manifest is not None:
                write_manifest(partial, manifest)
            files = sorted(partial.iterdir(), key=lambda file: file.name == MANIFEST_FILE)
            # safetensors makes files for the owner's eyes only; a server may be another user.
            readable = partial.stat().st_mode & 0o666
            for file in files:
                file.chmod(readable)
                file.replace(out / file.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
