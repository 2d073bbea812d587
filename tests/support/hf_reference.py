"""Invariant I1 in Hugging Face's words: base forward on x[:n-1], decoder from x[n-1] on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

Warp = Callable[[torch.Tensor, list[int]], torch.Tensor]


@cache
def model(folder: Path) -> Any:
    """A checkpoint in float32, loaded once."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@dataclass(frozen=True)
class Expected:
    """The output that a decoder must give.

    `first_logprob` is the log-probability of the first output token, and `gaps` are the differences
    of the two best logits at each step.
    """

    tokens: list[int]
    first_logprob: float
    gaps: list[float]


def _unchanged(logits: torch.Tensor, _tokens: list[int]) -> torch.Tensor:
    return logits


@torch.no_grad()
def expected(
    prefiller: Path, decoder: Path, ids: Sequence[int], tokens: int = 16, warp: Warp = _unchanged
) -> Expected:
    """Greedy output of `decoder` on the prompt KV of `prefiller`.

    `warp(logits [vocab], tokens so far)` changes the logits before each choice.
    """
    prompt = torch.tensor([list(ids)])
    past = (
        model(prefiller)(prompt[:, :-1], use_cache=True).past_key_values if len(ids) > 1 else None
    )
    said: list[int] = []
    gaps: list[float] = []
    current, first = prompt[:, -1:], 0.0
    for step in range(tokens):
        output = model(decoder)(current, past_key_values=past, use_cache=True)
        past, logits = output.past_key_values, warp(output.logits[0, -1], said)
        best = logits.topk(2).values
        gaps.append(float(best[0] - best[1]))
        if step == 0:
            first = float(logits.log_softmax(-1).max())
        said.append(int(logits.argmax()))
        current = torch.tensor([said[-1:]])
    return Expected(said, first, gaps)
