"""What a data set will cost, told before the training starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ps_sglang.training.train.examples import Encoded


def report(encoded: Encoded, max_length: int) -> Iterator[str]:
    """Lines for a person: how much there is, how long it is, what is cut or left out."""
    examples = encoded.examples
    yield (
        f"{encoded.source}: {_count(encoded.records, 'record')}, "
        f"{_count(encoded.answers, 'answer')}, {_count(len(examples), 'example')}"
    )
    answers = [answer for example in examples for answer in example.answers]
    yield f"  prompt tokens: {_spread([answer.start for answer in answers])}"
    yield f"  answer tokens: {_spread([len(answer.ids) for answer in answers])}"
    yield f"  together: {_spread([a.start + len(a.ids) for a in answers])}; limit {max_length:,}"
    if encoded.cut:
        yield f"  truncated: {_count(encoded.cut, 'answer')} cut at the limit, without their end"
    if encoded.skipped:
        yield f"  left out: {_count(encoded.skipped, 'answer')} that did not fit"
    if encoded.unlearned:
        yield f"  not learned: {_count(encoded.unlearned, 'answer')} marked so"
    for name, records in encoded.dropped.items():
        yield f"  dropped: {name} in {_count(records, 'record')}, which the text does not show"
    if encoded.empty:
        yield f"  left out: {_count(encoded.empty, 'answer')} of which the text shows nothing"
    if encoded.columns:
        yield f"  columns not read: {', '.join(encoded.columns)}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def _spread(values: Sequence[int]) -> str:
    """Nearest ranks; `values` is not empty."""
    ordered = sorted(values)
    median, high = (ordered[int(part * (len(ordered) - 1))] for part in (0.5, 0.95))
    return f"median {median:,}, 95 % at most {high:,}, longest {ordered[-1]:,}"
