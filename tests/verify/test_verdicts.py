"""What counts as right, as a tie, as a failure; and the lines that say so."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ps_sglang.verify.client import GatewayAnswer
from ps_sglang.verify.collect import Exchange
from ps_sglang.verify.compare import BARS, Verdict, judge, verdict
from ps_sglang.verify.prompts import ANSWER_LENGTH
from ps_sglang.verify.reference import Scores
from ps_sglang.verify.report import VerifyReport

BAR = BARS["float32"]
PROMPT = (1, 2, 3)
TOKENS = tuple(range(100, 100 + ANSWER_LENGTH))
ANSWER = GatewayAnswer(PROMPT, TOKENS, first_logprob=-1.0)
EXCHANGE = Exchange("cold", "a", PROMPT, ANSWER)
SHARED = Scores(
    TOKENS, gaps=(0.5,) * ANSWER_LENGTH, behind=(0.0,) * ANSWER_LENGTH,
    logprobs=(-1.0,) * ANSWER_LENGTH,
)  # fmt: skip
OWN = replace(SHARED, best=(0, *TOKENS[1:]), behind=(0.5, *SHARED.behind[1:]))


def scores(mismatches: dict[int, float]) -> Scores:
    """The reference prefers another token, by the gap given, at these positions."""
    return replace(
        SHARED,
        best=tuple(7 if i in mismatches else token for i, token in enumerate(TOKENS)),
        behind=tuple(mismatches.get(i, 0.0) for i in range(ANSWER_LENGTH)),
    )


def judged(shared: Scores, answer: GatewayAnswer = ANSWER, own: Scores = OWN) -> Verdict:
    return verdict(EXCHANGE, answer, shared, own, BAR)


class NoReference:
    """Fails the test if an answer is compared that cannot be."""


def unfit(exchange: Exchange) -> Verdict:
    [found] = judge(NoReference(), [exchange], BAR)  # type: ignore[arg-type]
    return found


def test_all_tokens_right() -> None:
    found = judged(SHARED)
    assert (found.right, found.ties, found.failure) == (ANSWER_LENGTH, (), None)
    assert found.own_kv_agrees is False


def test_a_tie_is_listed_and_counts_as_right() -> None:
    found = judged(scores({4: 0.0009}))
    assert (found.right, found.failure) == (ANSWER_LENGTH, None)
    assert [(tie.position, tie.said, tie.best, tie.gap) for tie in found.ties] == [
        (4, 104, 7, 0.0009)
    ]


def test_the_gap_of_a_tie_has_a_limit() -> None:
    found = judged(scores({4: 0.001}))
    assert found.right == 4
    assert found.failure == "token 4 is 104, the reference's best is 7 (logit gap 0.001)"


def test_a_mismatch_after_a_tie_is_a_failure() -> None:
    found = judged(scores({4: 0.0001, 9: 0.2, 12: 0.0001}))
    assert (found.right, len(found.ties)) == (9, 1)
    assert found.failure is not None


@pytest.mark.parametrize("logprob", [-1.002, -0.9, float("nan")])
def test_the_first_logprob_must_fit(logprob: float) -> None:
    found = judged(SHARED, replace(ANSWER, first_logprob=logprob))
    assert found.failure is not None
    assert "logprob" in found.failure


def test_the_first_logprob_may_differ_a_little() -> None:
    assert judged(SHARED, replace(ANSWER, first_logprob=-1.0009)).failure is None


def test_a_single_token_says_nothing_about_own_kv() -> None:
    exchange = replace(EXCHANGE, prompt=(1,))
    assert verdict(exchange, ANSWER, SHARED, SHARED, BAR).own_kv_agrees is None


def test_own_kv_agrees_where_it_leads_to_the_same_answer() -> None:
    assert judged(SHARED, own=SHARED).own_kv_agrees is True


def test_a_refused_request_is_a_failure() -> None:
    found = unfit(replace(EXCHANGE, outcome="status 500: out of memory"))
    assert (found.right, found.failure) == (0, "status 500: out of memory")


def test_an_answer_of_another_length_is_a_failure() -> None:
    found = unfit(replace(EXCHANGE, outcome=replace(ANSWER, tokens=TOKENS[:-1])))
    assert found.failure == "23 tokens came back, 24 were asked for"


def test_another_chat_template_is_a_failure() -> None:
    found = unfit(replace(EXCHANGE, outcome=replace(ANSWER, prompt=(1, 9, 3, 4))))
    assert found.failure is not None
    assert "part at token 1" in found.failure


def test_report_of_an_exact_run() -> None:
    report = VerifyReport([judged(SHARED), judged(SHARED)], BAR)
    assert report.conclusion == "exact: 2/2 prompts, 48/48 tokens"
    assert list(report.details()) == [
        "first token's logprob: largest error 0.0e+00 (allowed: 0.001)",
        "control: own KV agrees on 0/2 prompts",
    ]
    assert report.passed


def test_report_of_ties_and_failures() -> None:
    report = VerifyReport([judged(scores({4: 0.0001})), judged(scores({9: 0.2}))], BAR)
    lines = list(report.details())
    assert lines[0].startswith("tie request 0 (cold, decoder a, 3 prompt tokens): token 4 is 104")
    assert lines[1].startswith("FAILED request 1 (cold, decoder a, 3 prompt tokens): token 9 is")
    assert any(line.startswith("ties ") and "given the token" in line for line in lines)
    assert report.conclusion == "exact: 1/2 prompts, 33/48 tokens"
    assert not report.passed


@pytest.mark.parametrize(("agreeing", "passed"), [(0, True), (1, True), (2, False), (4, False)])
def test_a_check_that_cannot_tell_does_not_pass(agreeing: int, passed: bool) -> None:
    verdicts = [judged(SHARED, own=SHARED if i < agreeing else OWN) for i in range(4)]
    report = VerifyReport(verdicts, BAR)
    lines = list(report.details())
    assert f"control: own KV agrees on {agreeing}/4 prompts" in lines
    assert report.passed is passed
    assert any("cannot tell" in line for line in lines) is not passed


@pytest.mark.parametrize(("own", "passed"), [(0.2, False), (0.29, False), (0.31, True)])
def test_under_rounding_all_answers_together_must_be_nearer_to_the_base(
    own: float, passed: bool
) -> None:
    rounded = BARS["bfloat16"]
    own_kv = replace(OWN, behind=(own, *SHARED.behind[1:]))
    verdicts = [verdict(EXCHANGE, ANSWER, scores({4: 0.1}), own_kv, rounded)] * 4
    report = VerifyReport(verdicts, rounded)
    assert report.conclusion == "right but for rounding: 4/4 prompts, 96/96 tokens"
    assert report.passed is passed
    assert any(line.startswith("FAILED") for line in report.details()) is not passed


def test_report_of_a_cluster_that_died() -> None:
    report = VerifyReport([unfit(replace(EXCHANGE, outcome="connection refused"))], BAR)
    assert list(report.details()) == [
        "FAILED request 0 (cold, decoder a, 3 prompt tokens): connection refused",
        "control: own KV agrees on 0/0 prompts",
    ]
    assert not report.passed


def test_report_as_json() -> None:
    report = VerifyReport(
        [judged(scores({4: 0.0001})), unfit(replace(EXCHANGE, outcome="no"))], BAR
    )
    found = json.loads(json.dumps(report.to_json()))
    assert (found["prompts_right"], found["tokens_right"], found["tokens"]) == (1, 24, 48)
    assert found["requests"][0]["ties"][0]["gap"] == 0.0001
    assert found["requests"][1]["failure"] == "no"
