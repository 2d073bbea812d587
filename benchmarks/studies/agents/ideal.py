"""What the work of a trace comes to by measured step costs, and what sharing could win at most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from benchmarks.sessions.workload import Session, prefills
from benchmarks.studies.simulate.hardware import Measured


def amounts(trace: Sequence[Session]) -> dict[str, dict[str, float]]:
    """All that costs are linear in, as plain JSON.

    `shared` (one prefill for all models), `per_model` (each its own): passes, new tokens, pairs of
    query and key. `decode`: tokens, and the tokens of context that they read together.
    """
    turns = [(turn.output, length) for session in trace for turn, length in session.prompts()]
    return {
        "shared": _prefilled(trace, by_model=False),
        "per_model": _prefilled(trace, by_model=True),
        "decode": {
            "tokens": sum(output for output, _ in turns),
            "context": sum(output * (length + output / 2) for output, length in turns),
        },
    }


def _prefilled(trace: Sequence[Session], *, by_model: bool) -> dict[str, float]:
    passes = [prefill for prefill in prefills(trace, by_model) if prefill.new]
    return {
        "passes": len(passes),
        "tokens": sum(prefill.new for prefill in passes),
        "pairs": sum(pairs(prefill.held, prefill.new) for prefill in passes),
    }


def pairs(cached: int, new: int) -> float:
    """Of query and key, in a prefill of `new` tokens behind `cached`."""
    return new * cached + new * new / 2


def ideal_ratio(
    work: Mapping[str, Mapping[str, float]], costs: Mapping[str, Any], batch: float
) -> float:
    """How many times less work a trace is with one prefill for all models.

    That is (each model's own prefill + decode) / (one prefill + decode) in core seconds, with
    `costs` as `steps` saves them and decode steps of `batch` requests. Nothing else costs anything.
    """
    steps = msgspec.convert(costs["measured"], Measured)

    def prefill(amount: Mapping[str, float]) -> float:
        further = (amount["passes"] - 1) * steps.prefill_step
        return steps.prefill_cores * (
            steps.prefill(round(amount["tokens"]), amount["pairs"]) + further
        )

    count, context = work["decode"]["tokens"], work["decode"]["context"]
    each = steps.decode_step / max(batch, 1.0) + steps.decode_request
    decode = steps.decode_cores * (count * each + context * steps.decode_context_token)
    return (prefill(work["per_model"]) + decode) / (prefill(work["shared"]) + decode)
