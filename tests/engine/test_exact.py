"""Invariant I1: token for token the reference's output, cold, warm and concurrent."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from tests.engine.served import Launch, Models, Served
from tests.support.engine_client import assert_conserved, generate, together
from tests.support.hf_reference import expected

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

LENGTHS = (1, 2, 3, 16, 17, 18, 33, 64, 65, 129, 700)
KINDS = (
    "llama, page 1", "qwen3, page 16", "adapters, page 1", "adapters, page 16",
    "one worker, page 1", "one worker, page 16",
)  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def served(
    request: pytest.FixtureRequest, llama: Models, qwen3: Models, adapted: Models, launch: Launch
) -> Served:
    kind, _, page = request.param.partition(", page ")
    models = {"llama": llama, "qwen3": qwen3}.get(kind, adapted)
    return launch(
        models, "a", "b",
        one_worker=kind == "one worker",
        engine_args=("--page-size", page, "--chunked-prefill-size", "64"),
    )  # fmt: skip


@pytest.mark.parametrize("length", LENGTHS)
def test_cold_and_warm(
    served: Served, length: int, prompts: Callable[[int, int], list[list[int]]]
) -> None:
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


def test_own_kv_would_be_seen(
    served: Served, prompts: Callable[[int, int], list[list[int]]]
) -> None:
    """The control: a decoder on its OWN prompt KV says something else on most prompts."""
    decoder = served.models.decoders["a"]
    same = [
        expected(decoder, decoder, ids).tokens == expected(served.models.base, decoder, ids).tokens
        for ids in prompts(10, 50)
    ]
    assert sum(same) <= 2


def test_concurrent_requests_of_all_decoders(
    served: Served, prompts: Callable[[int, int], list[list[int]]]
) -> None:
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
