"""Stand-in decoders: the base plus seeded Gaussian noise. Nothing is trained here.

A stand-in has the base's shape and other weights, which is all that it takes to show that the
handoff is exact. It says nothing about the quality of a real cache-conditioned decoder.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ps_sglang.contract.fingerprint import base_fingerprint
from ps_sglang.contract.manifest import BaseReference, Manifest, Training, write_manifest
from ps_sglang.contract.tokenizer import chat_template_digest, tokenizer_digest
from ps_sglang.models.checkpoint import Tensors, write_sibling

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
    manifest = Manifest(
        base=BaseReference(name=base.name, fingerprint=base_fingerprint(base)),
        tokenizer=tokenizer_digest(base),
        chat_template=chat_template_digest(base),
        kv_cache_dtype="float32",
        share_ratio=1.0,
        tool_call_parser=tool_call_parser,
        training=Training(recipe="none: base plus Gaussian noise", settings=asdict(noise)),
        stand_in=True,
    )
    write_manifest(folder, manifest)


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
