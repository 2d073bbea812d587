"""Seeds and penalties, against SGLang's own code where it runs here."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch

from ps_sglang.engine.sampling import seeds
from ps_sglang.engine.sampling.murmur import murmur_hash32
from ps_sglang.engine.sampling.penalties import cumulate_rows
from ps_sglang.engine.sampling.seeds import SeededSampler


@pytest.fixture(autouse=True)
def hashed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the hook does it: without a kernel library, the hash comes from this project."""
    from sglang.srt.layers import sampler

    monkeypatch.setattr(sampler, "murmur_hash32", lambda *args: murmur_hash32(None, *args))


def murmur3(seed: int, position: int, token: int) -> int:
    """MurmurHash3 x86 32-bit of the 16 key bytes, from the algorithm's public description."""
    key = seed.to_bytes(8, "little") + position.to_bytes(4, "little") + token.to_bytes(4, "little")
    state, mask = 0, 0xFFFFFFFF
    for start in range(0, 16, 4):
        block = int.from_bytes(key[start : start + 4], "little") * 0xCC9E2D51 & mask
        block = (block << 15 | block >> 17) & mask
        state ^= block * 0x1B873593 & mask
        state = ((state << 13 | state >> 19) & mask) * 5 + 0xE6546B64 & mask
    state ^= 16
    state = (state ^ state >> 16) * 0x85EBCA6B & mask
    state = (state ^ state >> 13) * 0xC2B2AE35 & mask
    return state ^ state >> 16


def test_hash_is_murmur3() -> None:
    seeds, positions = [0, 7, 2**63 - 1, 2**64 - 2**20], [0, 1, 8191, 5]
    hashes = murmur_hash32(
        None,
        torch.tensor(np.array(seeds, dtype=np.uint64)),
        torch.tensor(positions),
        torch.tensor([0, 1, 49151]),
    )
    assert hashes.tolist() == [
        [murmur3(seed, position, token) for token in (0, 1, 49151)]
        for seed, position in zip(seeds, positions, strict=True)
    ]


class Batch:
    """The part of a ScheduleBatch that penalizers read (they keep a weak reference)."""

    device = "cpu"

    def __init__(self, reqs: list[types.SimpleNamespace]) -> None:
        self.reqs = reqs


def draw(probs: torch.Tensor, top_k: int, top_p: float, min_p: float, seeds: range) -> list[int]:
    rows = len(seeds)
    info = types.SimpleNamespace(
        top_ks=torch.full((rows,), top_k), top_ps=torch.full((rows,), top_p),
        min_ps=torch.full((rows,), min_p), need_min_p_sampling=min_p > 0,
        sampling_seed=torch.tensor(list(seeds)), sampling_mask_batch_indices=None,
    )  # fmt: skip
    sampler = SeededSampler.__new__(SeededSampler)
    positions = torch.zeros(rows).int()
    drawn, _ = sampler._sample_from_probs(probs.expand(rows, -1), info, positions, False)
    return list(drawn.tolist())


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p", "allowed"),
    [
        (2, 1.0, 0.0, {1, 3}),
        (9, 0.6, 0.0, {1, 3}),
        (9, 1.0, 0.5, {1, 3}),
        (9, 1.0, 0.0, {0, 1, 2, 3}),
    ],
)
def test_filters_keep_the_tokens_they_should(
    top_k: int, top_p: float, min_p: float, allowed: set[int]
) -> None:
    probs = torch.tensor([[0.15, 0.4, 0.15, 0.3]])
    assert set(draw(probs, top_k, top_p, min_p, range(400))) == allowed


def test_draws_follow_the_distribution() -> None:
    probs = torch.tensor([[0.1, 0.6, 0.3]])
    counts = np.bincount(draw(probs, 3, 1.0, 0.0, range(4000)), minlength=3) / 4000
    assert counts == pytest.approx([0.1, 0.6, 0.3], abs=0.03)


def test_a_filter_that_keeps_a_token_does_not_change_the_draw() -> None:
    """Noise goes with the token: only draws of filtered tokens may change."""
    probs = torch.softmax(torch.randn(1, 50, generator=torch.Generator().manual_seed(0)), -1)
    for free, cut in zip(
        draw(probs, 50, 1.0, 0.0, range(300)), draw(probs, 40, 1.0, 0.0, range(300)), strict=True
    ):
        top = set(probs[0].topk(40).indices.tolist())
        assert cut == free or free not in top


def test_penalties_count_some_rows_and_spare_the_others() -> None:
    from sglang.srt.sampling.penaltylib import (
        BatchedFrequencyPenalizer,
        BatchedMinNewTokensPenalizer,
        BatchedPenalizerOrchestrator,
        BatchedRepetitionPenalizer,
    )

    tokenizer = types.SimpleNamespace(additional_stop_token_ids=None, eos_token_id=2)
    params = types.SimpleNamespace(
        frequency_penalty=1.0, repetition_penalty=2.0, min_new_tokens=3, stop_token_ids=None
    )
    reqs = [
        types.SimpleNamespace(sampling_params=params, tokenizer=tokenizer, eos_token_ids=None)
        for _ in range(3)
    ]
    batch = Batch(reqs)
    penalizers = {
        BatchedFrequencyPenalizer, BatchedMinNewTokensPenalizer, BatchedRepetitionPenalizer,
    }  # fmt: skip
    orchestrator = BatchedPenalizerOrchestrator(8, batch, penalizers)
    cumulate_rows(orchestrator, {0: 5, 2: 6}, 3)
    cumulate_rows(orchestrator, {0: 5}, 3, unknown={1})
    frequency = orchestrator.penalizers[BatchedFrequencyPenalizer].cumulated_frequency_penalties
    repetition = orchestrator.penalizers[BatchedRepetitionPenalizer].cumulated_repetition_penalties
    lengths = orchestrator.penalizers[BatchedMinNewTokensPenalizer].len_output_tokens
    assert frequency.nonzero().tolist() == [[0, 5], [2, 6]]
    assert (frequency[0, 5], frequency[2, 6]) == (2, 1)
    assert (repetition != 1).nonzero().tolist() == [[0, 5], [2, 6]]
    assert lengths.flatten().tolist() == [2, 1, 1]


@pytest.fixture
def flashinfer(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = types.SimpleNamespace(sampling_backend="flashinfer")
    monkeypatch.setattr(seeds, "get_exec", lambda: types.SimpleNamespace(kernel=kernel))
    monkeypatch.setattr(seeds, "get_device", lambda: types.SimpleNamespace(random_seed=3))


def batch_of(**asked: int | None) -> types.SimpleNamespace:
    """A batch of requests by id, with the seeds that their clients gave, and its sampling state."""
    reqs = [
        types.SimpleNamespace(rid=rid, sampling_params=types.SimpleNamespace(sampling_seed=seed))
        for rid, seed in asked.items()
    ]
    info = types.SimpleNamespace(sampling_seed=None)
    batch = types.SimpleNamespace(reqs=reqs, device="cpu", sampling_info=info)
    seeds.from_schedule_batch(info, None, batch, 9)
    return batch


def seeds_of(batch: types.SimpleNamespace) -> list[int] | None:
    tensor = batch.sampling_info.sampling_seed
    return None if tensor is None else list(tensor.tolist())


@pytest.mark.usefixtures("flashinfer")
def test_flashinfer_samples_all_but_batches_with_a_clients_seed() -> None:
    plain, seeded = batch_of(a=None, b=None), batch_of(c=7, d=None)
    assert seeds_of(plain) is None
    assert (seeds_of(seeded) or [])[0] == 7
    seeds.merge_batch(plain, seeded)  # SGLang joins the tensors after this
    alone = [*(seeds_of(plain) or []), *(seeds_of(seeded) or [])]
    assert alone[2] == 7
    assert len(set(alone)) == 4
    seeded.reqs = seeded.reqs[1:]
    seeds.filter_batch(None, seeded)
    assert seeds_of(seeded) is None


@pytest.mark.usefixtures("flashinfer")
def test_every_rank_makes_the_same_seeds() -> None:
    first, second = batch_of(a=None, b=1), batch_of(a=None, b=1)
    assert seeds_of(first) == seeds_of(second)
