"""Per-request seeds for SGLang's PyTorch sampler.

Stock SGLang honours ``sampling_seed`` only under ``--enable-deterministic-inference``, which the
CPU attention backend lacks and which gives every request without a seed the same one. Here each
request samples with its own seed: the client's, or one drawn for it. The noise of a token is a
hash of seed and position (layers/sampler.py: multinomial_with_seed), so a seeded answer does
not depend on what else is in the batch. Other sampling backends keep SGLang's behaviour.
"""

from __future__ import annotations

import secrets
from typing import Any

import torch

from ps_sglang.engine.compat.srt import get_exec


def from_schedule_batch(info: Any, _cls: Any, batch: Any, vocab_size: int) -> None:
    """After ``SamplingBatchInfo.from_schedule_batch``: one seed a row, int64."""
    del vocab_size
    if info.sampling_seed is None and get_exec().kernel.sampling_backend == "pytorch":
        seeds = [_seed(req) for req in batch.reqs]
        info.sampling_seed = torch.tensor(seeds, dtype=torch.int64, device=batch.device)


def _seed(req: Any) -> int:
    if req.sampling_params.sampling_seed is None:
        req.sampling_params.sampling_seed = secrets.randbits(63)
    return int(req.sampling_params.sampling_seed)


def sample_with_min_p(
    original: Any, probs: torch.Tensor, top_ks: torch.Tensor, top_ps: torch.Tensor,
    min_ps: torch.Tensor, need_min_p_sampling: bool, sampling_seed: torch.Tensor | None,
    positions: torch.Tensor, **kwargs: Any,
) -> Any:  # fmt: skip
    """Around ``top_k_top_p_min_p_sampling_from_probs_torch``: min-p together with seeds.

    The stock function asserts against the combination. Zeroing improbable tokens first is the
    same filter: they sort last, so top-k and top-p see the same head of the distribution.

    Args:
        probs: ``[batch, vocab]``, float. The other tensors are ``[batch]``.
    """
    if need_min_p_sampling and sampling_seed is not None:
        threshold = probs.amax(dim=-1, keepdim=True) * min_ps.view(-1, 1)
        probs = torch.where(probs < threshold, 0.0, probs)
        need_min_p_sampling = False
    return original(
        probs, top_ks, top_ps, min_ps, need_min_p_sampling, sampling_seed, positions, **kwargs
    )
