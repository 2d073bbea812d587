"""From a plain LoRA adapter to the whole model that it makes of its base, without torch or peft.

So the demo's decoders are merged where they are prepared; `ps-sglang merge` merges any adapter that
peft can read. The ones here are float16, of one rank, for projections only.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from ps_sglang.contract import MANIFEST_FILE, AdapterFiles, base_fingerprint, read_manifest
from ps_sglang.contract.adapter_files import ADAPTER_WEIGHTS
from ps_sglang.errors import CheckpointError
from ps_sglang.models.checkpoint import WEIGHTS_FILE, Tensors, write_sibling


def write_adapted(base: Path, adapter: Path, folder: Path) -> None:
    """Fill `folder` with the decoder that `adapter` makes of the checkpoint in `base`.

    Raises CheckpointError if it was trained on another base.
    """
    manifest = read_manifest(adapter)
    if manifest is None or manifest.base.fingerprint != (fingerprint := base_fingerprint(base)):
        trained = (
            f"{manifest.base.fingerprint}, not on {fingerprint}" if manifest else "an unknown base"
        )
        raise CheckpointError(f"the adapter {adapter} was trained on {trained}, {base}")
    write_sibling(base, folder, merge(load_file(base / WEIGHTS_FILE), adapter))
    shutil.copyfile(adapter / MANIFEST_FILE, folder / MANIFEST_FILE)


def merge(base: Tensors, adapter: Path) -> Tensors:
    """Weights with the adapter's low-rank update added; the others are the base's own arrays."""
    files = AdapterFiles.read(adapter)
    scale = np.float32(files.config.alpha / files.config.rank)
    weights = load_file(adapter / ADAPTER_WEIGHTS)
    decoder = dict(base)
    for module, factors in files.factors.items():
        down, up = (weights[factors[half].name].astype(np.float32) for half in "AB")
        decoder[f"{module}.weight"] = base[f"{module}.weight"] + scale * (up @ down)
    return decoder
