"""Costs of steps from samples: linear, and none below zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median

import numpy as np

Sample = tuple[Mapping[str, float], float]
"""How much of each thing there was, and the seconds that it took."""


def fit(samples: Sequence[Sample]) -> dict[str, float]:
    """Seconds that one of each thing costs: the least squares of relative errors.

    Where one would be negative it is 0. All samples name the same things.
    """
    names = list(samples[0][0])
    seconds = np.array([taken for _, taken in samples])
    rows = np.array([[counts[name] for name in names] for counts, _ in samples]) / seconds[:, None]
    best, least = np.zeros(len(names)), np.inf
    # With so few things every choice of those that cost something can be tried.
    for size in range(1, len(names) + 1):
        for chosen in map(list, combinations(range(len(names)), size)):
            coefficients, *_ = np.linalg.lstsq(rows[:, chosen], np.ones(len(rows)), rcond=None)
            error = float(np.sum((rows[:, chosen] @ coefficients - 1) ** 2))
            if np.all(coefficients >= 0) and error < least:
                best, least = np.zeros(len(names)), error
                best[chosen] = coefficients
    return dict(zip(names, best.tolist(), strict=True))


def misses(samples: Sequence[Sample], costs: Mapping[str, float]) -> dict[str, float]:
    """Relative errors of the costs on their samples: median and most."""
    errors = [
        abs(sum(costs[name] * count for name, count in counts.items()) / taken - 1)
        for counts, taken in samples
    ]
    return {"median": median(errors), "most": max(errors)}
