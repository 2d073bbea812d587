"""Weights in a memory file that forked workers share: equal, held once, changed by no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ps_sglang.engine import shared_weights
from ps_sglang.engine.settings import SHARE_WEIGHTS
from ps_sglang.engine.shared_weights import SharedWeights


def model(*seeds: int) -> torch.nn.Module:
    """Linear layers of random bfloat16 weights, the first of them twice, with a small bias."""
    layers = []
    for seed in seeds:
        torch.manual_seed(seed)
        layers.append(torch.nn.Linear(256, 512, dtype=torch.bfloat16).requires_grad_(False))
    return torch.nn.Sequential(*layers, layers[0])


def values(one: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in one.parameters()]


def pages(one: torch.nn.Module) -> list[str]:
    """What each weight is mapped from, as the kernel tells it."""
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    found = []
    for parameter in one.parameters():
        for span, _, _, _, _, *name in maps:
            start, end = (int(part, 16) for part in span.split("-"))
            if start <= parameter.data_ptr() < end:
                found.append(name[0] if name else "")
    return found


def test_a_weight_is_in_memory_once_whoever_has_it() -> None:
    file = SharedWeights()
    first, second = model(1, 2), model(1, 3)
    expected = [values(first), values(second)]
    file.adopt(first)
    assert file.weights == 2
    file.adopt(second)
    assert file.weights == 3
    for one, before in zip((first, second), expected, strict=True):
        assert all(map(torch.equal, one.parameters(), before))
        weight, bias, *_ = pages(one)
        assert weight.startswith("/memfd:ps_sglang-weights")
        assert "memfd" not in bias
    assert first[0] is first[-1]


def test_a_worker_that_loads_others_changes_nobody_elses() -> None:
    file = SharedWeights()
    first, second = model(1), model(1)
    expected = values(second)
    file.adopt(first)
    file.adopt(second)
    first[0].weight.data.zero_()
    assert all(map(torch.equal, second.parameters(), expected))
    third = model(1)
    file.adopt(third)
    assert all(map(torch.equal, third.parameters(), expected))


def test_a_full_file_leaves_the_rest_to_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_weights, "_ENTRIES", 2)
    file, one = SharedWeights(), model(1, 2)
    expected = values(one)
    file.adopt(one)
    assert file.weights == 1
    assert all(map(torch.equal, one.parameters(), expected))


@pytest.mark.parametrize(("variable", "weights"), [("1", 2), ("0", 0)])
def test_the_launcher_says_who_shares(
    monkeypatch: pytest.MonkeyPatch, variable: str, weights: int
) -> None:
    file = SharedWeights()
    monkeypatch.setattr(shared_weights._Inherited, "file", file)
    monkeypatch.setenv(SHARE_WEIGHTS, variable)
    shared_weights.share(model(1, 2))
    assert file.weights == weights
    monkeypatch.setattr(shared_weights._Inherited, "file", None)
    shared_weights.share(model(1, 2))
