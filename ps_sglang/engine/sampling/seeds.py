"""Per-request seeds for SGLang's PyTorch sampler.

Stock SGLang honours `sampling_seed` only under `--enable-deterministic-inference`, which the
CPU attention backend lacks and which gives every request without a seed the same one. Here each
request samples with its own seed: the client's, or one drawn for it. The noise of a token is a
hash of seed and position (layers/sampler.py: multinomial_with_seed), so a seeded answer does
not depend on what else is in the batch. Other sampling backends keep SGLang's behaviour.
"""

from __future__ import annotations

import secrets
from typing import Any

import torch

from ps_sglang.engine.compat.srt import (
    Sampler,
    get_exec,
    multinomial_with_seed,
    register_sampler_backend,
)
from ps_sglang.engine.hooking import after


@after("sampling.sampling_batch_info.SamplingBatchInfo.from_schedule_batch", "batch", "vocab_size")
def from_schedule_batch(info: Any, _cls: Any, batch: Any, vocab_size: int) -> None:
    """After `SamplingBatchInfo.from_schedule_batch`: give each row a seed, int64."""
    del vocab_size
    if info.sampling_seed is None and get_exec().kernel.sampling_backend == "pytorch":
        seeds = [_seed(req) for req in batch.reqs]
        info.sampling_seed = torch.tensor(seeds, dtype=torch.int64, device=batch.device)


def _seed(req: Any) -> int:
    if req.sampling_params.sampling_seed is None:
        req.sampling_params.sampling_seed = secrets.randbits(63)
    return int(req.sampling_params.sampling_seed)


class SeededSampler(Sampler):  # type: ignore[misc]
    """SGLang's sampler, with the noise of filtered sampling by token, not by rank.

    The stock one draws the noise for the sorted tokens, so the same seed gives another answer as
    soon as any request in the batch asks for top-k or top-p, and it asserts against min-p together
    with a seed.
    """

    def _sample_from_probs(
        self, probs: torch.Tensor, sampling_info: Any, positions: torch.Tensor,
        simple_sampling_case: bool,
    ) -> Any:  # fmt: skip
        """Token ids ([batch], int32) for `probs` ([batch, vocab], float), and no mask."""
        stock = simple_sampling_case or sampling_info.sampling_seed is None
        if stock or sampling_info.sampling_mask_batch_indices is not None:
            return super()._sample_from_probs(probs, sampling_info, positions, simple_sampling_case)
        return _sample_filtered(probs, sampling_info, positions), None


def _sample_filtered(probs: torch.Tensor, info: Any, positions: torch.Tensor) -> torch.Tensor:
    ordered, tokens = probs.sort(dim=-1, descending=True)
    ranks = torch.arange(probs.shape[-1], device=probs.device)
    preceding = ordered.cumsum(dim=-1) - ordered
    dropped = (ranks >= info.top_ks[:, None]) | (preceding > info.top_ps[:, None])
    if info.need_min_p_sampling:
        dropped |= ordered < ordered[:, :1] * info.min_ps[:, None]
    ordered = ordered.masked_fill(dropped, 0.0)
    kept = torch.zeros_like(probs).scatter_(-1, tokens, ordered)
    drawn = multinomial_with_seed(kept.log(), info.sampling_seed, positions)
    return drawn.view(-1).to(torch.int32)


def register() -> None:
    """Sample with seeds wherever `--sampling-backend pytorch` is in use, as on every CPU."""
    register_sampler_backend("pytorch", SeededSampler)
