"""The finished decoder as a checkpoint folder that engines load, with its manifest."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from ps_sglang.contract import (
    MANIFEST_FILE,
    Manifest,
    base_fingerprint,
    read_manifest,
    write_manifest,
)
from ps_sglang.contract.tensors import read_tensors
from ps_sglang.errors import UsageError
from ps_sglang.models import NamedModel
from ps_sglang.models.checkpoint import copy_side_files
from ps_sglang.training.train.saving import saving

ADAPTER: Final = "adapter"
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


def merge_adapter(base: NamedModel, adapter: Path, out: Path) -> None:
    """Write the decoder that the adapter saved in `adapter` makes of its base.

    Raises UsageError if it was trained on another base.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    manifest = read_manifest(adapter)
    if manifest is None:
        raise UsageError(f"{adapter} has no {MANIFEST_FILE}; give a folder that training wrote")
    if manifest.base.fingerprint != (fingerprint := base_fingerprint(base.path)):
        raise UsageError(
            f"{adapter} was trained on {manifest.base.name} ({manifest.base.fingerprint}), not on "
            f"{base.name} ({fingerprint}); give that base"
        )
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    weights = model.state_dict()
    _write(out, manifest, lambda folder: _write_model(model, weights, base.path, folder))


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


def _write(out: Path, manifest: Manifest, fill: Callable[[Path], object]) -> None:
    partial = out / ".partial"
    with saving(out):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            fill(partial)
            write_manifest(partial, manifest)
            files = sorted(partial.iterdir(), key=lambda file: file.name == MANIFEST_FILE)
            # safetensors makes files for the owner's eyes only; a server may be another user.
            readable = partial.stat().st_mode & 0o666
            for file in files:
                file.chmod(readable)
                file.replace(out / file.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
