"""What verify prints, and writes as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ps_sglang.verify.compare import Bar, Verdict
from ps_sglang.verify.prompts import ANSWER_LENGTH


@dataclass(frozen=True)
class VerifyReport:
    """All verdicts of a run, by one bar."""

    verdicts: Sequence[Verdict]
    bar: Bar

    @property
    def prompts_right(self) -> int:
        """Prompts without a failure."""
        return sum(verdict.failure is None for verdict in self.verdicts)

    @property
    def tokens_right(self) -> int:
        """Tokens that are the reference's best, or tied with it."""
        return sum(verdict.right for verdict in self.verdicts)

    @property
    def tokens(self) -> int:
        """Tokens asked for."""
        return ANSWER_LENGTH * len(self.verdicts)

    @property
    def control(self) -> tuple[int, int]:
        """On how many prompts the answer is right by the decoder's own KV, and of how many."""
        agreements = [
            verdict.own_kv_agrees for verdict in self.verdicts if verdict.own_kv_agrees is not None
        ]
        return sum(agreements), len(agreements)

    @property
    def can_tell(self) -> bool:
        """Whether the control fails, so that agreeing means something.

        It fails on most prompts, or is off by more than rounding on all of them together.
        """
        if self.bar.nearer is not None:
            shared, own_kv = self.lacks
            return self.bar.nearer * shared < own_kv
        agreed, compared = self.control
        return 2 * agreed < compared

    @property
    def lacks(self) -> tuple[float, float]:
        """By how much all answers' logits are behind the best: by the reference, by own KV."""
        return (
            sum(verdict.lacks for verdict in self.verdicts),
            sum(verdict.own_kv_lacks for verdict in self.verdicts),
        )

    @property
    def passed(self) -> bool:
        """Everything exact, by a check that can tell."""
        return self.can_tell and self.prompts_right == len(self.verdicts)

    @property
    def conclusion(self) -> str:
        """The line that is printed last."""
        return (
            f"{self.bar.right}: {self.prompts_right}/{len(self.verdicts)} prompts, "
            f"{self.tokens_right}/{self.tokens} tokens"
        )

    def details(self) -> Iterator[str]:
        """The lines before the last one: failures, ties, first logprobs, the control."""
        for number, verdict in enumerate(self.verdicts):
            if verdict.failure is not None:
                yield f"FAILED {_where(number, verdict)}: {verdict.failure}"
            for tie in verdict.ties if self.bar.nearer is None else ():
                yield f"tie {_where(number, verdict)}: {tie}"
        if any(verdict.ties for verdict in self.verdicts):
            yield (
                f"ties (logit gap below {self.bar.tie:g}) count as right; what follows one is "
                "compared given the token that the server chose"
            )
        errors = [
            verdict.logprob_error for verdict in self.verdicts if verdict.logprob_error is not None
        ]
        if errors:
            yield (
                f"first token's logprob: largest error {max(errors):.1e} "
                f"(allowed: {self.bar.logprob:g})"
            )
        yield "control: own KV agrees on {}/{} prompts".format(*self.control)
        if self.bar.nearer is not None:
            shared, own_kv = self.lacks
            yield f"behind the best logits: {shared:.2f} in all, by own KV {own_kv:.2f}"
            if not self.can_tell:
                yield (
                    f"FAILED: own KV must be off {self.bar.nearer:g} times as much; these are "
                    "answers on the decoders' own KV, or the decoders are the base by other names"
                )
        elif self.control[1] and not self.can_tell:
            yield (
                "FAILED: by the decoders' own KV half of the answers or more are right as well, so "
                "this check cannot tell a shared prefill from none; are the decoders the "
                "base under other names?"
            )

    def to_json(self) -> dict[str, Any]:
        """Everything, for a program to read."""
        return {
            "passed": self.passed,
            "prompts_right": self.prompts_right,
            "prompts": len(self.verdicts),
            "tokens_right": self.tokens_right,
            "tokens": self.tokens,
            "control_agrees": self.control[0],
            "control_prompts": self.control[1],
            "requests": [asdict(verdict) for verdict in self.verdicts],
        }


def _where(number: int, verdict: Verdict) -> str:
    exchange = verdict.exchange
    return (
        f"request {number} ({exchange.phase}, decoder {exchange.decoder}, "
        f"{len(exchange.prompt)} prompt tokens)"
    )
