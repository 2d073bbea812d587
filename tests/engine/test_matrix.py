"""Invariant I1 under overlap scheduling, tensor parallel and every page size.

By default a few combinations run, so that each value is there and overlap meets tp 2. All of them,
with PS_SGLANG_WHOLE_MATRIX=1, take about a quarter of an hour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import pytest

from ps_sglang.verify.reference import Reference
from tests.engine.served import Launch, Models, Served, kinds
from tests.support.engine_client import assert_conserved, generate, together
from tests.support.hf_reference import expected

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Prompts = Callable[[int, int], list[list[int]]]
LENGTHS = (1, 2, 16, 17, 63, 64, 65, 130)
POOL_TOKENS = 640
# Several times the pool, so that requests are retracted.
CROWD, CROWD_PROMPT, CROWD_ANSWER = 10, 60, 60


@dataclass(frozen=True)
class Combination:
    """How a cluster runs."""

    family: str
    page: int
    tp: int
    overlap: bool

    def __str__(self) -> str:
        overlap = ", overlap" if self.overlap else ""
        return f"{self.family}, page {self.page}, tp {self.tp}{overlap}"


EVERY = [
    Combination(*one) for one in product(("llama", "qwen3"), (1, 16, 64), (1, 2), (False, True))
]
SOME = [
    Combination("llama", 64, 1, True),
    Combination("qwen3", 16, 2, True),
    Combination("llama", 1, 2, False),
]


@pytest.fixture(
    scope="module", params=kinds(SOME, [one for one in EVERY if one not in SOME]), ids=str
)
def served(
    request: pytest.FixtureRequest, llama: Models, qwen3: Models, launch: Launch
) -> Iterator[Served]:
    one: Combination = request.param
    models = llama if one.family == "llama" else qwen3
    words = ["--page-size", str(one.page), "--chunked-prefill-size", "64"]
    words += ["--no-disable-overlap-schedule"] * one.overlap
    with pytest.MonkeyPatch.context() as patch:
        if one.tp > 1:
            # SGLang's CPU ranks want to know their cores.
            patch.setenv("SGLANG_CPU_OMP_THREADS_BIND", "0|1")
            words += ["--tp-size", str(one.tp)]
        yield launch(
            models, "a",
            engine_args=tuple(words),
            decode_engine_args=(
                "--max-total-tokens", str(POOL_TOKENS), "--num-reserved-decode-tokens", "8",
            ),
        )  # fmt: skip


def test_cold_and_warm(served: Served, prompts: Prompts) -> None:
    base, decoder = served.models.base, served.models.decoders["a"]
    for length in LENGTHS:
        (ids,) = prompts(1, length)
        want = expected(base, decoder, ids, 8)
        for _ in ("cold", "warm"):
            answer = generate(served.cluster, "a", ids, 8, return_logprob=True)
            assert answer["output_ids"] == want.tokens, f"{length} tokens"
            (logprob, *_), *_ = answer["meta_info"]["output_token_logprobs"]
            assert logprob == pytest.approx(want.first_logprob, abs=1e-3)
    assert_conserved(served.cluster)


def test_concurrent_and_retracted(served: Served, prompts: Prompts) -> None:
    base, decoder = served.models.base, served.models.decoders["a"]
    (shared,) = prompts(1, CROWD_PROMPT // 2)
    tails = prompts(CROWD, CROWD_PROMPT // 2)
    asked = [shared[: 5 * number] + tail for number, tail in enumerate(tails)]
    want = [expected(base, decoder, ids, CROWD_ANSWER).tokens for ids in asked]
    answers = together([partial(generate, served.cluster, "a", ids, CROWD_ANSWER) for ids in asked])
    assert [answer["output_ids"] for answer in answers] == want
    assert sum(answer["meta_info"]["num_retractions"] for answer in answers) > 0
    again = [generate(served.cluster, "a", ids, CROWD_ANSWER)["output_ids"] for ids in asked[:2]]
    assert again == want[:2]
    assert_conserved(served.cluster)


def test_ranks_draw_the_same_tokens_without_a_seed(served: Served, prompts: Prompts) -> None:
    """Else each rank goes on with a token of its own, and no model gives such logprobs."""
    reference = Reference(served.models.base, {"a": served.models.decoders["a"]})
    (ids,) = prompts(1, 20)
    ask = partial(
        generate, served.cluster, "a", ids, 12, sampling={"temperature": 1.0}, return_logprob=True
    )
    drawn = set()
    for answer in together([ask] * 3):
        tokens = tuple(answer["output_ids"])
        logprobs = [row[0] for row in answer["meta_info"]["output_token_logprobs"]]
        assert logprobs == pytest.approx(
            reference.shared("a", tuple(ids), tokens).logprobs, abs=1e-3
        )
        drawn.add(tokens)
    assert len(drawn) > 1
