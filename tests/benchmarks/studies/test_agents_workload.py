from __future__ import annotations

from itertools import pairwise

import pytest

from benchmarks.sessions.workload import KINDS, Conversation, Shape, sessions, work
from ps_sglang.errors import UsageError

SHORT = Shape(
    "reflexion",
    3,
    steps=2,
    system_tokens=100,
    task_tokens=(3, 9),
    observation_tokens=20,
    output_tokens=(2, 6),
)


def test_the_same_seed_gives_the_same_sessions_and_another_seed_others() -> None:
    assert sessions(Shape(), 2.0, 20, 7) == sessions(Shape(), 2.0, 20, 7)
    assert sessions(Shape(), 2.0, 20, 7) != sessions(Shape(), 2.0, 20, 8)


def test_the_rate_only_scales_arrivals() -> None:
    slow, fast = (sessions(Shape(), rate, 30, 1) for rate in (1.0, 4.0))
    assert [one.turns for one in slow] == [one.turns for one in fast]
    assert [one.start for one in slow] == pytest.approx([4 * one.start for one in fast])


def test_arrivals_are_a_poisson_process() -> None:
    starts = [one.start for one in sessions(Shape(steps=1), 5.0, 4000, 3)]
    gaps = [b - a for a, b in pairwise(starts)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 5, rel=0.05)
    # An exponential gap's variance is its mean squared.
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.1)


@pytest.mark.parametrize("decoders", [2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_every_decoder_speaks_and_only_actions_bring_observations(kind: str, decoders: int) -> None:
    shape = Shape(kind, decoders)  # type: ignore[arg-type]
    (session,) = sessions(shape, 1.0, 1, 1)
    assert {turn.decoder for turn in session.turns} == set(range(decoders))
    observed = [turn.added > 0 for turn in session.turns]
    if kind == "react":
        assert observed == [True, False] * 7
    else:
        first = [True] * 8 + [False]  # seven actions; the evaluator reads the last one's result
        assert observed == first + ([False] + [True] * 7 + [False]) * 2


@pytest.mark.parametrize("page", [1, 16])
def test_the_work_that_a_trace_allows_is_what_trees_of_token_ids_find(page: int) -> None:
    trace = sessions(SHORT, 1.0, 3, 5)
    computed = {"shared": 0, "per model": 0}
    trees: dict[object, set[tuple[int, ...]]] = {}
    for session in trace:
        talk = Conversation(session, 5, 50_000)
        for turn in session.turns:
            base = talk.ask()[:-1]
            for name, key in (("shared", None), ("per model", turn.decoder)):
                tree = trees.setdefault(key, {()})
                ends = range(0, len(base) + 1, page)
                computed[name] += len(base) - max(n for n in ends if tuple(base[:n]) in tree)
                tree.update(tuple(base[:n]) for n in ends)
            talk.answered([50_000 + turn.decoder] * turn.output)
    found = work(trace, page)
    assert (found.shared, found.per_model) == (computed["shared"], computed["per model"])
    assert found.ideal_ratio > 2


def test_prompts_grow_and_a_session_says_the_same_each_time() -> None:
    (session,) = sessions(Shape(), 1.0, 1, 1)
    one, other = (Conversation(session, 1, 1000) for _ in range(2))
    before: list[int] = []
    for turn, length in session.prompts():
        prompt = one.ask()
        assert prompt == other.ask()
        assert (len(prompt), prompt[: len(before)]) == (length, before)
        one.answered([0] * turn.output)
        other.answered([0] * turn.output)
        before = [*prompt, *[0] * turn.output]


def test_an_answer_of_another_length_is_refused() -> None:
    (session,) = sessions(Shape(), 1.0, 1, 1)
    talk = Conversation(session, 1, 1000)
    talk.ask()
    with pytest.raises(ValueError, match=r"has 1 tokens, not the forced \d+"):
        talk.answered([5])


def test_what_cannot_be_a_workload_is_refused() -> None:
    with pytest.raises(UsageError, match="one of react, reflexion, text, not 'other'"):
        Shape("other")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="above 0 sessions a second, not 0"):
        sessions(Shape(), 0, 1, 1)
    with pytest.raises(UsageError, match="at least 1"):
        Shape(decoders=0)
