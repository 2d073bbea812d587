"""A decode pool that runs full under load: SGLang retracts on its own, and answers stay exact."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from tests.engine.served import Launch, Models
from tests.support.engine_client import assert_conserved, counters, generate, growth, together
from tests.support.hf_reference import expected

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


def test_answers_outgrow_the_pool(
    llama: Models, launch: Launch, prompts: Callable[[int, int], list[list[int]]]
) -> None:
    """Twelve answers of 150 tokens on 20 prompt tokens want 2,040 tokens; the pool has 416."""
    pool = ("--max-total-tokens", "416", "--num-reserved-decode-tokens", "8")
    served = launch(llama, "a", decode_engine_args=pool)
    inputs = prompts(12, 20)
    want = [expected(llama.base, llama.decoders["a"], ids, 150).tokens for ids in inputs]
    before = counters(served.cluster)
    answers = together([partial(generate, served.cluster, "a", ids, 150) for ids in inputs])
    after = counters(served.cluster)
    assert [answer["output_ids"] for answer in answers] == want
    retractions = sum(answer["meta_info"]["num_retractions"] for answer in answers)
    assert retractions > 0, "the pool never ran full, so the test showed nothing"
    assert growth(before, after, "prefill-0", "prefill_requests") == len(inputs)
    assert_conserved(served.cluster)
