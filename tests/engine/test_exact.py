"""Invariant I1: token for token the reference's output, cold, warm and concurrent."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest

from tests.engine.served import Launch, Models, Served, kinds
from tests.support.engine_client import assert_conserved, flush, generate, together
from tests.support.hf_reference import expected

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Prompts = Callable[[int, int], list[list[int]]]
LENGTHS = (1, 2, 3, 16, 17, 18, 33, 64, 65, 129, 700)
KINDS = kinds(
    ["llama, page 1", "qwen3, page 16", "adapters, page 16", "one worker, page 16"],
    ["adapters, page 1", "one worker, page 1"],
)
SOME_KINDS = pytest.mark.parametrize(
    "served", ["llama, page 1", "qwen3, page 16", "one worker, page 16"], indirect=True
)


@pytest.fixture(scope="module", params=KINDS)
def served(
    request: pytest.FixtureRequest, llama: Models, qwen3: Models, adapted: Models, launch: Launch
) -> Served:
    kind, _, page = request.param.partition(", page ")
    models = {"llama": llama, "qwen3": qwen3}.get(kind, adapted)
    return launch(
        models, "a", "b",
        one_worker=kind == "one worker",
        engine_args=("--page-size", page, "--chunked-prefill-size", "48"),
    )  # fmt: skip


@pytest.mark.parametrize("length", LENGTHS)
def test_cold_and_warm(served: Served, length: int, prompts: Prompts) -> None:
    (ids,) = prompts(1, length)
    for name in ("a", "b"):
        want = expected(served.models.base, served.models.decoders[name], ids)
        for _ in ("cold", "warm"):
            answer = generate(served.cluster, name, ids, return_logprob=True)
            meta = answer["meta_info"]
            assert answer["output_ids"] == want.tokens
            assert meta["output_token_logprobs"][0][0] == pytest.approx(
                want.first_logprob, abs=1e-3
            )
            assert (meta["prompt_tokens"], meta["completion_tokens"]) == (length, 16)
    assert_conserved(served.cluster)


@SOME_KINDS
def test_warm_tree_at_every_length(served: Served, prompts: Prompts) -> None:
    """All beginnings of one prompt, in orders that find less or more of it in the trees."""
    (longest,) = prompts(1, 72)
    want = {
        (name, length): expected(
            served.models.base, served.models.decoders[name], longest[:length], 2
        ).tokens
        for length in range(1, 73)
        for name in ("a", "b")
    }

    def ask(name: str, length: int) -> list[int]:
        tokens: list[int] = generate(served.cluster, name, longest[:length], 2)["output_ids"]
        return tokens

    for name, lengths in (("a", range(1, 73)), ("b", range(72, 0, -1))):
        flush(served.cluster)
        for length in lengths:
            assert ask(name, length) == want[name, length], (name, length)
    flush(served.cluster)
    shuffled = random.Random(72).sample(list(want), len(want))
    answers = together([partial(ask, *one) for one in shuffled])
    assert answers == [want[one] for one in shuffled]
    assert_conserved(served.cluster)


@SOME_KINDS
def test_special_tokens(served: Served) -> None:
    """The tokenizer's, also twice, and its last ids: nobody adds one to a prompt, or drops one."""
    for ids in ([1, 1, 5], [2] * 4, [0] * 33, [1] * 64, [510, 511]):
        want = expected(served.models.base, served.models.decoders["a"], ids, 8)
        for _ in ("cold", "warm"):
            answer = generate(served.cluster, "a", ids, 8, sampling={"ignore_eos": True})
            assert answer["output_ids"] == want.tokens
            assert answer["meta_info"]["prompt_tokens"] == len(ids)
    assert_conserved(served.cluster)


def test_own_kv_would_be_seen(served: Served, prompts: Prompts) -> None:
    """The control: a decoder on its OWN prompt KV says something else on most prompts."""
    decoder = served.models.decoders["a"]
    same = [
        expected(decoder, decoder, ids).tokens == expected(served.models.base, decoder, ids).tokens
        for ids in prompts(10, 50)
    ]
    assert sum(same) <= 2


def test_concurrent_requests_of_all_decoders(served: Served, prompts: Prompts) -> None:
    (shared,) = prompts(1, 40)
    requests = [
        (name, shared[: 5 * size] + tail)
        for size, tail in enumerate(prompts(8, 11))
        for name in ("a", "b")
    ]
    want = [expected(served.models.base, served.models.decoders[n], ids, 24) for n, ids in requests]
    for _ in ("cold", "warm"):
        answers = together([partial(generate, served.cluster, n, ids, 24) for n, ids in requests])
        assert [answer["output_ids"] for answer in answers] == [w.tokens for w in want]
    assert_conserved(served.cluster)
