"""Served answers against offline ones, item by item."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ps_sglang.training.evaluate.generate import Tokens
from ps_sglang.training.evaluate.results import Answered, Comparison, OutcomeDifference
from ps_sglang.verify.reference import Reference, common_length

_DECODER = "decoder"


def compare(
    base: Path,
    decoder: Path,
    prompts: Sequence[Tokens],
    offline: Sequence[Answered],
    served: Sequence[Answered],
) -> Comparison:
    """Which texts are not equal, and how close the choice was where they part.

    All three sequences are of the same items. Loads the models in float32 only if texts differ.
    """
    pairs = list(zip(prompts, offline, served, strict=True))
    unequal = [pair for pair in pairs if pair[1].text != pair[2].text]
    reference = Reference(base, {_DECODER: decoder}) if unequal else None
    return Comparison(
        len(pairs), tuple(_difference(reference, *pair) for pair in unequal if reference)
    )


def _difference(
    reference: Reference, prompt: Tokens, offline: Answered, served: Answered
) -> OutcomeDifference:
    position = common_length(offline.tokens, served.tokens)
    if position == max(len(offline.tokens), len(served.tokens)):
        return OutcomeDifference(offline.id, offline.text, served.text, None, None)
    # The longer of both has a token there; its own value does not matter for the gap before it.
    longer = max(offline.tokens, served.tokens, key=len)
    gap = reference.shared(_DECODER, prompt, longer[: position + 1]).gaps[position]
    return OutcomeDifference(offline.id, offline.text, served.text, position, gap)
