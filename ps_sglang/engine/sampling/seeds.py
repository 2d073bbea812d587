"""Per-request seeds, with SGLang's PyTorch sampler and with FlashInfer's.

Stock SGLang honours `sampling_seed` only under `--enable-deterministic-inference`, which the
CPU attention backend lacks and which gives every request without a seed the same one. Here each
request samples with its own seed: the client's, or one made for it. The noise of a token is a
hash of seed and position (layers/sampler.py: multinomial_with_seed), so a seeded answer does
not depend on what else is in the batch.

FlashInfer's kernels take no seeds. With `--sampling-backend flashinfer` a batch has seeds while a
client's seed is in it, and PyTorch samples it. FlashInfer samples all other batches.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from xxhash import xxh3_64_intdigest

from ps_sglang.engine.compat.srt import (
    Sampler,
    get_device,
    get_exec,
    multinomial_with_seed,
    register_sampler_backend,
)
from ps_sglang.engine.hooking import after, before


@after("sampling.sampling_batch_info.SamplingBatchInfo.from_schedule_batch", "batch", "vocab_size")
def from_schedule_batch(info: Any, _cls: Any, batch: Any, vocab_size: int) -> None:
    """After `SamplingBatchInfo.from_schedule_batch`: give each row a seed, int64."""
    del vocab_size
    if info.sampling_seed is not None:
        return  # --enable-deterministic-inference
    backend = get_exec().kernel.sampling_backend
    if backend == "pytorch" or (backend == "flashinfer" and _has_a_clients_seed(batch)):
        info.sampling_seed = _seeds(batch)


@before("managers.schedule_batch.ScheduleBatch.merge_batch", "self", "other")
def merge_batch(batch: Any, other: Any) -> None:
    """Before `ScheduleBatch.merge_batch`: seeds for both batches, if one has some.

    SGLang would leave the other one's rows without.
    """
    if (batch.sampling_info.sampling_seed is None) != (other.sampling_info.sampling_seed is None):
        for one in (batch, other):
            one.sampling_info.sampling_seed = _seeds(one)


@after(
    "managers.schedule_batch.ScheduleBatch.filter_batch", "self", "reqs_to_exclude", "keep_indices"
)
def filter_batch(_result: None, batch: Any, *_args: Any, **_kwargs: Any) -> None:
    """After `ScheduleBatch.filter_batch`: no seeds, if the last client's one has left."""
    info = batch.sampling_info
    if info is None or info.sampling_seed is None or not batch.reqs:
        return
    if get_exec().kernel.sampling_backend == "flashinfer" and not _has_a_clients_seed(batch):
        info.sampling_seed = None


def _has_a_clients_seed(batch: Any) -> bool:
    return any(req.sampling_params.sampling_seed is not None for req in batch.reqs)


def _seeds(batch: Any) -> torch.Tensor:
    seeds = [_seed(req) for req in batch.reqs]
    return torch.tensor(seeds, dtype=torch.int64, device=batch.device)


def _seed(req: Any) -> int:
    """The client's seed, or one of this request on this server.

    All ranks of a worker must make the same one, as each of them samples. So it is not drawn.
    """
    seed = req.sampling_params.sampling_seed
    if seed is None:
        return int(xxh3_64_intdigest(f"{get_device().random_seed} {req.rid}".encode()) >> 1)
    return int(seed)


BACKENDS: Final = ("pytorch", "flashinfer")


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
    """Sample with seeds: `pytorch` is every CPU's backend, `flashinfer` that of CUDA."""
    for backend in BACKENDS:
        register_sampler_backend(backend, SeededSampler)
