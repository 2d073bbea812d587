"""Rows of results: a score with its confidence interval, and what it was measured on."""

from __future__ import annotations

import math
from dataclasses import dataclass

# The standard normal distribution's 97.5 % quantile: 95 % lie between it and its negative.
_Z = 1.959963984540054


@dataclass(frozen=True)
class Row:
    """One score: the part of `n` items passed, with its Wilson 95 % interval `low` to `high`.

    `tail` is how many tokens before the boundary token the decoder read, whatever the `share`.
    `served` tells whether a cluster answered, or Hugging Face in this process, then in `dtype`.
    Fingerprints leave the output head out, which makes no KV.
    """

    task: str
    system: str
    share: float
    tail: int
    seed: int
    n: int
    score: float
    low: float
    high: float
    served: bool
    split: str
    few_shot: int
    dtype: str | None
    decoder: str
    decoder_fingerprint: str
    base_fingerprint: str
    data_digest: str


def wilson(score: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a rate `score` seen on `n` items.

    Unlike the normal approximation it stays within 0 to 1, and has a width at both ends.
    """
    squared = _Z * _Z / n
    centre = (score + squared / 2) / (1 + squared)
    half = _Z * math.sqrt(score * (1 - score) / n + squared / (4 * n)) / (1 + squared)
    # Rounding must not push it past the ends, nor past the score itself.
    return min(score, max(0.0, centre - half)), max(score, min(1.0, centre + half))
