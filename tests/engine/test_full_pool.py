"""Pools that are too small: answers stay exact, and what has no room is refused at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from tests.engine.served import Launch, Models, Served
from tests.support.engine_client import (
    RefusedError,
    assert_conserved,
    counters,
    generate,
    growth,
    in_work,
    metric,
    post,
    stream,
    together,
)
from tests.support.hf_reference import expected

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Prompts = Callable[[int, int], list[list[int]]]


def test_answers_outgrow_the_pool(llama: Models, launch: Launch, prompts: Prompts) -> None:
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

    # One that is alone may go on to the pool's end.
    (ids,) = prompts(1, 300)
    answer = generate(served.cluster, "a", ids, 1000, sampling={"ignore_eos": True})
    said, meta = answer["output_ids"], answer["meta_info"]
    assert said == expected(llama.base, llama.decoders["a"], ids, len(said)).tokens
    assert meta["finish_reason"]["type"] == "length"
    assert 410 <= meta["prompt_tokens"] + meta["completion_tokens"] <= 416
    assert_conserved(served.cluster)


@pytest.fixture(scope="module")
def small_prefill(llama: Models, launch: Launch) -> Served:
    """A prefill worker with a pool of 416 tokens; the decode worker's holds a whole context."""
    return launch(llama, "a", prefill_engine_args=("--max-total-tokens", "416"))


def ask(served: Served, path: str, body: dict[str, Any], *, streamed: bool) -> Any:
    """The answer, or a stream's last event; or RefusedError."""
    url = served.cluster.url
    if not streamed:
        return post(url + path, {"model": "a", **body})
    return list(stream(url, "a", path, body))[-1]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_prompt_that_only_the_prefill_pool_cannot_hold(
    small_prefill: Served, prompts: Prompts, streamed: bool
) -> None:
    """The gateway knows how long token ids are, and the context, but not the pool."""
    models = small_prefill.models
    sampling = {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True}
    answered = []
    for length, ids in zip(range(408, 421), prompts(13, 420), strict=True):
        body = {"input_ids": ids[:length], "sampling_params": sampling}
        try:
            answer = ask(small_prefill, "/generate", body, streamed=streamed)
        except RefusedError as error:
            assert_too_long(error, "input_ids")
        else:
            want = expected(models.base, models.decoders["a"], ids[:length], 4)
            assert answer["output_ids"] == want.tokens
            answered.append(length)
    assert answered == [408, 409, 410], "the base prefix of 411 tokens has no room"
    text = {"prompt": "x" * 500, "max_tokens": 4}
    with pytest.raises(RefusedError) as refused:
        ask(small_prefill, "/v1/completions", text, streamed=streamed)
    assert_too_long(refused.value, "prompt")
    assert_conserved(small_prefill.cluster)


def assert_too_long(error: RefusedError, field: str) -> None:
    told = error.body["error"]
    assert (error.status, told["code"], told["param"]) == (400, "context_length_exceeded", field)


@pytest.mark.parametrize("first", ["prefill", "decode"])
def test_decode_worker_hears_that_a_prompt_was_refused(
    small_prefill: Served, prompts: Prompts, first: str
) -> None:
    """From the prefill worker: without a gateway nobody else would tell it."""
    prefill, decode = small_prefill.cluster.plan.workers
    body = {
        "input_ids": prompts(1, 500)[0],
        "bootstrap_host": "127.0.0.1",
        "bootstrap_port": prefill.bootstrap_port,
        "bootstrap_room": 7001 if first == "prefill" else 7002,
    }
    with ThreadPoolExecutor(1) as pool:
        if first == "decode":
            leg = pool.submit(post, f"{decode.url}/generate", body)
            while "decode_transfer_queue_reqs" not in in_work(decode.url):
                assert not leg.done()
        with pytest.raises(RefusedError, match=r"400.*exceeds the maximum allowed length"):
            post(f"{prefill.url}/generate", body)
        if first == "prefill":
            leg = pool.submit(post, f"{decode.url}/generate", body)
        with pytest.raises(RefusedError, match="the prefill worker refused the request"):
            leg.result()
    assert metric(decode.url, "handoff_failures") == metric(
        decode.url, "handoff_failures", reason="aborted"
    )
    assert_conserved(small_prefill.cluster)
