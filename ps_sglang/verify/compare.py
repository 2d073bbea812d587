"""Judge what the cluster answered by the reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from ps_sglang.verify.client import GatewayAnswer
from ps_sglang.verify.collect import Exchange
from ps_sglang.verify.prompts import ANSWER_LENGTH, Tokens
from ps_sglang.verify.reference import Reference, Scores, common_length


@dataclass(frozen=True)
class Bar:
    """How far a right answer may be from the reference, which computes in float32.

    Two logits closer than `tie` may change places. The first token's logprob may be off by
    `logprob` nats. `right` is what answers within it are called. Where `nearer` is given, rounding
    can be as large as what the decoder's own KV changes in one answer. All answers together then
    must lack that many times less logit by the reference than by the decoder's own KV.
    """

    tie: float
    logprob: float
    right: str
    nearer: float | None = None


BARS: Final = MappingProxyType(
    {
        "float32": Bar(1e-3, 1e-3, "exact"),
        # Measured with Hugging Face in bfloat16. One token lacked 0.25 at most for the demo's models,
        # and less than 2 for the random ones of tests, whose attention is sharp. By the wrong KV the
        # most that a token lacked was ten times as large on average.
        "bfloat16": Bar(2.0, 2.0, "right but for rounding", nearer=3.0),
    }
)
"""By the number format in which the workers compute."""


@dataclass(frozen=True)
class Mismatch:
    """Where an answer leaves the reference: token `said` at `position`, counted from 0, instead
    of `best`, whose logit is ahead by `gap`."""

    position: int
    said: int
    best: int
    gap: float

    def __str__(self) -> str:
        return (
            f"token {self.position} is {self.said}, the reference's best is {self.best} "
            f"(logit gap {self.gap:.2g})"
        )


@dataclass(frozen=True)
class Verdict:
    """The judgement of one exchange.

    `right` counts its tokens before the first mismatch that is no tie, `failure` says what is
    wrong, if anything. `logprob_error` is that of the first token, in nats. `own_kv_agrees` tells
    whether the answer would also be right on the decoder's own KV; None where it cannot differ, as
    a prompt of one token has no base prefix. `lacks` and `own_kv_lacks` say by how much the logits
    of its tokens are behind the best ones, all together, by the reference and by own KV.
    """

    exchange: Exchange
    right: int = 0
    ties: tuple[Mismatch, ...] = ()
    failure: str | None = None
    logprob_error: float | None = None
    own_kv_agrees: bool | None = None
    lacks: float = 0.0
    own_kv_lacks: float = 0.0


def judge(reference: Reference, exchanges: Iterable[Exchange], bar: Bar) -> Iterator[Verdict]:
    """One verdict an exchange, in order."""
    seen: dict[tuple[str, Tokens, Tokens], tuple[Scores, Scores]] = {}
    for exchange in exchanges:
        answer = exchange.outcome
        problem = _unfit(exchange)
        if problem is not None or isinstance(answer, str):
            yield Verdict(exchange, failure=problem)
            continue
        key = (exchange.decoder, exchange.prompt, answer.tokens)
        if key not in seen:
            seen[key] = (reference.shared(*key), reference.own(*key))
        yield verdict(exchange, answer, *seen[key], bar)


def verdict(
    exchange: Exchange, answer: GatewayAnswer, shared: Scores, own_kv: Scores, bar: Bar
) -> Verdict:
    """Compare an answer of the right length with the reference's two scores of it."""
    mismatches = _mismatches(answer.tokens, shared)
    wrong = next((mismatch for mismatch in mismatches if mismatch.gap >= bar.tie), None)
    right = len(answer.tokens) if wrong is None else wrong.position
    error = _first_error(answer, shared)
    failure = None if wrong is None else str(wrong)
    if failure is None and not error <= bar.logprob:
        failure = f"the first token's logprob is off by {error:.2g}"
    return Verdict(
        exchange,
        right=right,
        ties=tuple(mismatch for mismatch in mismatches if mismatch.position < right),
        failure=failure,
        logprob_error=error,
        own_kv_agrees=_agrees(answer, own_kv, bar) if len(exchange.prompt) > 1 else None,
        lacks=sum(shared.behind),
        own_kv_lacks=sum(own_kv.behind),
    )


def _agrees(answer: GatewayAnswer, scores: Scores, bar: Bar) -> bool:
    return max(scores.behind) < bar.tie and _first_error(answer, scores) <= bar.logprob


def _first_error(answer: GatewayAnswer, scores: Scores) -> float:
    return abs(answer.first_logprob - scores.logprobs[0])


def _mismatches(tokens: Tokens, scores: Scores) -> list[Mismatch]:
    rows = zip(tokens, scores.best, scores.behind, strict=True)
    return [
        Mismatch(position, token, best, gap)
        for position, (token, best, gap) in enumerate(rows)
        if token != best
    ]


def _unfit(exchange: Exchange) -> str | None:
    """Why there is nothing to compare, or that the decoder read something else."""
    answer = exchange.outcome
    if isinstance(answer, str):
        return answer
    if answer.prompt != exchange.prompt:
        same = common_length(answer.prompt, exchange.prompt)
        return (
            f"the server's prompt has {len(answer.prompt)} tokens, the reference's chat template "
            f"gives {len(exchange.prompt)}; they part at token {same}"
        )
    if len(answer.tokens) != ANSWER_LENGTH:
        return f"{len(answer.tokens)} tokens came back, {ANSWER_LENGTH} were asked for"
    return None
