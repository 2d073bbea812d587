"""LoRA adapters with random weights, as peft saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from ps_sglang.contract import Manifest, base_fingerprint, write_manifest
from ps_sglang.contract.manifest import BaseReference, Training
from ps_sglang.contract.tokenizer import chat_template_digest, tokenizer_digest


def make_adapter(
    base: Path,
    folder: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float16,
    manifest: bool = True,
    **config: Any,
) -> Path:
    """Fill `folder` with an adapter of the model in `base` that changes what it says.

    `config` are items of peft's LoraConfig; rank 4 for all linear layers if it says nothing else.
    """
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    items = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    lora = get_peft_model(model, LoraConfig(**(items | config)))
    torch.manual_seed(seed)
    for name, weights in lora.named_parameters():
        if "lora_A" in name or "lora_B" in name or "modules_to_save" in name:
            weights.data = torch.randn_like(weights) / 8
    lora.to(dtype).save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    if manifest:
        write_manifest(
            folder,
            Manifest(
                base=BaseReference(name="tiny", fingerprint=base_fingerprint(base)),
                tokenizer=tokenizer_digest(base),
                chat_template=chat_template_digest(base),
                kv_cache_dtype="float32",
                share_ratio=1.0,
                training=Training(recipe="none: random"),
            ),
        )
    return folder
