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

from ps_sglang.engine.compat.srt import get_exec, multinomial_with_seed


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


def sample_from_filtered_probs(
    original: Any, probs: torch.Tensor, top_ks: torch.Tensor, top_ps: torch.Tensor,
    min_ps: torch.Tensor, need_min_p_sampling: bool, sampling_seed: torch.Tensor | None,
    positions: torch.Tensor, *, return_filtered_probs: bool = False, max_top_k: int | None = None,
) -> Any:  # fmt: skip
    """Around ``top_k_top_p_min_p_sampling_from_probs_torch``: noise by token, not by rank.

    The stock function draws the noise for the sorted tokens, so the same seed gives another
    answer as soon as any request in the batch asks for top-k or top-p, and it asserts against
    min-p together with a seed.

    Args:
        probs: ``[batch, vocab]``, float. The other tensors are ``[batch]``.

    Returns:
        ``[batch]`` int32 token ids.
    """
    if sampling_seed is None or return_filtered_probs:
        return original(
            probs, top_ks, top_ps, min_ps, need_min_p_sampling, sampling_seed, positions,
            return_filtered_probs=return_filtered_probs, max_top_k=max_top_k,
        )  # fmt: skip
    ordered, tokens = probs.sort(dim=-1, descending=True)
    ranks = torch.arange(probs.shape[-1], device=probs.device)
    before = ordered.cumsum(dim=-1) - ordered
    dropped = (ranks >= top_ks[:, None]) | (before > top_ps[:, None])
    if need_min_p_sampling:
        dropped |= ordered < ordered[:, :1] * min_ps[:, None]
    ordered = ordered.masked_fill(dropped, 0.0)
    kept = torch.zeros_like(probs).scatter_(-1, tokens, ordered)
    drawn = multinomial_with_seed(kept.log(), sampling_seed, positions)
    return drawn.view(-1).to(torch.int32)
