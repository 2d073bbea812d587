"""The reference against token-by-token decoding with plain transformers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.tiny import make_tiny
from ps_sglang.models.adapter import write_adapted
from ps_sglang.verify.reference import Reference, common_length
from tests.support.adapters import make_adapter
from tests.verify.model_gateway import Models

LENGTH = 12


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def folders(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    return make_tiny(request.param, tmp_path_factory.mktemp(request.param), seed=3)


@pytest.fixture(scope="module")
def plain(folders: dict[str, Path]) -> Models:
    return Models(folders)


@pytest.fixture
def reference(folders: dict[str, Path]) -> Reference:
    return Reference(folders["base"], {name: folders[name] for name in "ab"})


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    dice = random.Random(seed)
    return tuple(dice.randrange(10, 500) for _ in range(length))


@pytest.mark.parametrize("length", [1, 2, 3, 40])
@pytest.mark.parametrize("own", [False, True])
def test_scores_are_those_of_stepwise_decoding(
    reference: Reference, plain: Models, length: int, own: bool
) -> None:
    ids = prompt(length)
    logits = plain.logits("a", list(ids), LENGTH, reader="a" if own else "base")
    greedy = tuple(logits.argmax(-1).tolist())
    scores = (reference.own if own else reference.shared)("a", ids, greedy)
    top = logits.topk(2).values
    assert scores.best == greedy
    assert scores.gaps == pytest.approx((top[:, 0] - top[:, 1]).tolist(), abs=1e-3)
    assert scores.behind == pytest.approx([0.0] * LENGTH, abs=1e-3)
    best_logprobs = logits.log_softmax(-1).max(-1).values.tolist()
    assert scores.logprobs == pytest.approx(best_logprobs, abs=1e-3)


def test_own_kv_leads_elsewhere(reference: Reference, plain: Models) -> None:
    ids = prompt(40)
    logits = plain.logits("a", list(ids), LENGTH, reader="a")
    own_answer = tuple(logits.argmax(-1).tolist())
    assert reference.shared("a", ids, own_answer).best != own_answer


def test_a_wrong_token_is_scored_after_the_answers_own_tokens(
    reference: Reference, plain: Models
) -> None:
    ids = prompt(20)
    greedy = plain.logits("a", list(ids), LENGTH, reader="base").argmax(-1).tolist()
    wrong = [*greedy[:5], (greedy[5] + 1) % 500, *greedy[6:]]
    best = reference.shared("a", ids, tuple(wrong)).best
    assert best[:6] == tuple(greedy[:6])


def test_reused_prefixes_change_nothing(folders: dict[str, Path], reference: Reference) -> None:
    beginning, answer = prompt(30), prompt(LENGTH, seed=9)
    asked = [
        ("a", beginning),
        ("b", beginning),
        ("a", beginning[:17]),
        ("b", (*beginning, *prompt(10, seed=1))),
        ("a", (*beginning[:20], *prompt(5, seed=2))),
        ("a", beginning[:1]),
        ("a", beginning),
    ]
    for decoder, ids in asked:
        fresh = Reference(folders["base"], {decoder: folders[decoder]})
        for way in ("shared", "own"):
            scores = getattr(reference, way)(decoder, ids, answer)
            alone = getattr(fresh, way)(decoder, ids, answer)
            assert scores.best == alone.best
            assert scores.logprobs == pytest.approx(alone.logprobs, abs=1e-3)


@pytest.mark.parametrize(
    ("one", "other", "length"),
    [((), (1,), 0), ((1, 2), (1, 2), 2), ((1, 2, 3), (1, 2), 2), ((1, 9, 3), (1, 2, 3), 1)],
)
def test_common_length(one: tuple[int, ...], other: tuple[int, ...], length: int) -> None:
    assert common_length(one, other) == length


def test_adapters_are_judged_like_the_models_that_they_make(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Two adapters and the base by name, beside each other and a whole model."""
    adapters = {
        name: make_adapter(folders["base"], tmp_path / name, seed=ord(name)) for name in "de"
    }
    whole = {name: tmp_path / f"{name}-whole" for name in adapters}
    for name, adapter in adapters.items():
        write_adapted(folders["base"], adapter, whole[name])
    base, a = folders["base"], folders["a"]
    reference = Reference(base, adapters | {"base": base, "a": a})
    plain = Models(whole | {"base": base, "a": a})
    ids = prompt(40)
    for name in ("d", "e", "base", "a", "d"):
        for own in (False, True):
            logits = plain.logits(name, list(ids), LENGTH, reader=name if own else "base")
            greedy = tuple(logits.argmax(-1).tolist())
            scores = (reference.own if own else reference.shared)(name, ids, greedy)
            assert scores.best == greedy
            best_logprobs = logits.log_softmax(-1).max(-1).values.tolist()
            assert scores.logprobs == pytest.approx(best_logprobs, abs=1e-3)
