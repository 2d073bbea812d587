"""From a LoRA adapter to the decoder that it makes of its base, without torch or peft.

The adapters of the demo are merged where a launch prepares its models. `train.export` merges any
adapter that peft can read; the ones here are plain: one rank, float16, projections only.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from ps_sglang.contract.fingerprint import base_fingerprint
from ps_sglang.contract.manifest import MANIFEST_FILE, read_manifest
from ps_sglang.errors import CheckpointError
from ps_sglang.models.checkpoint import WEIGHTS_FILE, Tensors, write_sibling

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"


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
    config = json.loads((adapter / ADAPTER_CONFIG).read_text())
    scale = np.float32(config["lora_alpha"] / config["r"])
    updates = load_file(adapter / ADAPTER_WEIGHTS)
    decoder = dict(base)
    for name, down in updates.items():
        if not name.endswith(_A):
            continue
        up = updates[name.removesuffix(_A) + _B]
        target = name.removeprefix(_PREFIX).removesuffix(_A) + ".weight"
        decoder[target] = base[target] + scale * (up.astype(np.float32) @ down.astype(np.float32))
    return decoder
