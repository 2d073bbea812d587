"""Stand-in decoders: the base plus seeded Gaussian noise, or a random adapter of it.

Nothing is trained here.
A stand-in has the base's shape and other weights, which is all that it takes to show that the
handoff is exact. It says nothing about the quality of a real cache-conditioned decoder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from safetensors.numpy import load_file, save_file

from ps_sglang.contract.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from ps_sglang.contract.fingerprint import base_fingerprint
from ps_sglang.contract.manifest import BaseReference, Manifest, Training, write_manifest
from ps_sglang.contract.tokenizer import chat_template_digest, tokenizer_digest
from ps_sglang.models.checkpoint import WEIGHTS_FILE, Tensors, write_sibling

PROJECTIONS: Final = (
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
)  # fmt: skip
"""The matrices that an adapter may change, in most architectures."""

# Every stand-in keeps them: noise here only degrades the language, it adds no test of the cache.
_KEPT = ("embed_tokens", "lm_head", "norm")


@dataclass(frozen=True)
class Noise:
    """`fraction` of each projection matrix's standard deviation, from a fixed `seed`."""

    fraction: float
    seed: int


def write_stand_in(
    base: Path, tensors: Tensors, folder: Path, noise: Noise, tool_call_parser: str | None = None
) -> None:
    """Fill `folder` with a stand-in decoder of the checkpoint in `base` (weights: `tensors`)."""
    write_sibling(base, folder, add_noise(tensors, noise))
    training = Training(recipe="none: base plus Gaussian noise", settings=asdict(noise))
    write_manifest(folder, _manifest(base, training, tool_call_parser))


def write_stand_in_adapter(
    base: Path,
    folder: Path,
    noise: Noise,
    rank: int = 8,
    targets: Sequence[str] = PROJECTIONS,
    tool_call_parser: str | None = None,
) -> Path:
    """Write a random LoRA adapter of the checkpoint in `base` as peft does; returns `folder`.

    Its update of each projection has the noise's strength.
    """
    generator = np.random.default_rng(noise.seed)
    updates: Tensors = {}
    for name, weights in load_file(base / WEIGHTS_FILE).items():
        if not name.endswith(tuple(f".{target}.weight" for target in targets)):
            continue
        rows, columns = weights.shape
        strength = np.float32(noise.fraction * float(weights.std()) / rank**0.5)
        module = f"base_model.model.{name.removesuffix('.weight')}"
        down = generator.standard_normal((rank, columns), dtype=np.float32)
        up = strength * generator.standard_normal((rows, rank), dtype=np.float32)
        updates[f"{module}.lora_A.weight"] = down.astype(np.float16)
        updates[f"{module}.lora_B.weight"] = up.astype(np.float16)
    folder.mkdir(parents=True)
    save_file(updates, folder / ADAPTER_WEIGHTS)
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": list(targets),
        "bias": "none",
        "base_model_name_or_path": base.name,
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config))
    settings = {**asdict(noise), "lora_rank": rank, "targets": " ".join(targets)}
    training = Training(recipe="none: a random adapter", settings=settings)
    write_manifest(folder, _manifest(base, training, tool_call_parser))
    return folder


def _manifest(base: Path, training: Training, tool_call_parser: str | None) -> Manifest:
    return Manifest(
        base=BaseReference(name=base.name, fingerprint=base_fingerprint(base)),
        tokenizer=tokenizer_digest(base),
        chat_template=chat_template_digest(base),
        kv_cache_dtype="float32",
        share_ratio=1.0,
        tool_call_parser=tool_call_parser,
        training=training,
        stand_in=True,
    )


def add_noise(base: Tensors, noise: Noise) -> Tensors:
    """Copy `base` with noise on each projection matrix.

    Embeddings, the output head and the norms are the base's own arrays. The same seed gives the
    same weights on every machine (numpy's PCG64 stream is stable across versions).
    """
    generator = np.random.default_rng(noise.seed)
    decoder: Tensors = {}
    for name in sorted(base):
        weights = base[name]
        if any(part in name for part in _KEPT):
            decoder[name] = weights
            continue
        values = generator.standard_normal(weights.shape, dtype=np.float32)
        values *= np.float32(noise.fraction * float(weights.std()))
        values += weights
        decoder[name] = values
    return decoder
