"""A full decode pool: requests are retracted and restored, never recomputed (invariant I4)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import cycle

import psutil
import pytest
import torch

from tests.engine.served import Launch, Models, Served, kinds
from tests.support.engine_client import (
    assert_conserved,
    counters,
    generate,
    growth,
    in_work,
    send,
    together,
)
from tests.support.hf_reference import expected

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Prompts = Callable[[int, int], list[list[int]]]
POOL = ("--max-total-tokens", "416", "--num-reserved-decode-tokens", "40")


QWEN = "qwen3, page 16"
OVERLAP = "llama, page 1, overlap on the decode workers"


@pytest.fixture(scope="module", params=kinds([QWEN, OVERLAP], ["llama, page 1"]))
def served(request: pytest.FixtureRequest, llama: Models, qwen3: Models, launch: Launch) -> Served:
    models, page = (qwen3, "16") if request.param == QWEN else (llama, "1")
    overlap = ("--no-disable-overlap-schedule",) if request.param == OVERLAP else ()
    with pytest.MonkeyPatch.context() as patch:
        # SGLang's own test hook: retract at every third decode step, pressure or none.
        patch.setenv("SGLANG_TEST_RETRACT", "1")
        return launch(
            models, "a", "b",
            engine_args=("--page-size", page),
            decode_engine_args=(*POOL, *overlap),
        )  # fmt: skip


def frequency_penalty(logits: torch.Tensor, output: list[int]) -> torch.Tensor:
    counts = torch.bincount(torch.tensor(output, dtype=torch.int64), minlength=logits.shape[0])
    return logits - 1.5 * counts


def test_output_is_exact_and_the_base_is_not_asked_again(served: Served, prompts: Prompts) -> None:
    # Under overlap a penalty comes a token late, but not in the step after a retraction.
    overlaps = "--disable-overlap-schedule" not in served.cluster.plan.workers[-1].argv
    penalties = (0, 0, 0) if overlaps else (0, 0, 1)
    lengths = (1, 2, 25, 60)
    requests = [
        (name, prompts(1, length)[0], penalised)
        for name, length, penalised in zip("ab" * 6, cycle(lengths), cycle(penalties), strict=False)
    ]
    want = [
        expected(
            served.models.base, served.models.decoders[name], ids, 40,
            *([frequency_penalty] if penalised else []),
        )
        for name, ids, penalised in requests
    ]  # fmt: skip
    before = counters(served.cluster)
    answers = together(
        [
            partial(
                generate, served.cluster, name, ids, 40,
                sampling={"frequency_penalty": 1.5 if penalised else 0.0}, return_logprob=True,
            )
            for name, ids, penalised in requests
        ]
    )  # fmt: skip
    after = counters(served.cluster)
    assert [answer["output_ids"] for answer in answers] == [w.tokens for w in want]
    assert all(len(a["meta_info"]["output_token_logprobs"]) == 40 for a in answers)
    retractions = sum(answer["meta_info"]["num_retractions"] for answer in answers)
    assert retractions > len(requests), "the test did not retract, so it showed nothing"
    assert growth(before, after, "prefill-0", "prefill_requests") == len(requests)
    assert_conserved(served.cluster)


def test_request_as_large_as_the_pool_is_served(served: Served, prompts: Prompts) -> None:
    """380 tokens and 40 reserved exceed 416: it gets the whole pool instead of waiting for ever."""
    (ids,) = prompts(1, 380)
    want = expected(served.models.base, served.models.decoders["a"], ids, 8)
    assert generate(served.cluster, "a", ids, 8)["output_ids"] == want.tokens


def test_hang_ups_among_retracted_requests(served: Served, prompts: Prompts) -> None:
    """Half of twelve requests end while some are retracted: nothing of them stays.

    A round retracts about a hundred times, with a backup of some 50 KB each. SGLang's and our own
    bounded tables grow by less than 0.5 MB a round at first.
    """
    cluster = served.cluster
    decode = next(worker for worker in cluster.workers if worker.name == "decode-a")
    inputs = prompts(6, 20)
    want = [
        expected(served.models.base, served.models.decoders["a"], ids, 80).tokens for ids in inputs
    ]
    memory = []
    for _ in range(3):
        with ThreadPoolExecutor(len(inputs)) as pool:
            with ExitStack() as leaving:
                for ids in prompts(6, 20):
                    leaving.enter_context(send(f"{cluster.url}/models/a/generate", endless(ids)))
                staying = [pool.submit(generate, cluster, "a", ids, 80) for ids in inputs]
                while "decode_retracted_queue_reqs" not in in_work(decode.url):
                    assert not all(answer.done() for answer in staying)
            answers = [answer.result() for answer in staying]
        assert [answer["output_ids"] for answer in answers] == want
        assert sum(answer["meta_info"]["num_retractions"] for answer in answers) > 0
        assert_conserved(cluster)
        memory.append(resident_bytes(decode.pid))
    assert memory[-1] - memory[0] < 3 << 20


def endless(ids: list[int]) -> dict[str, object]:
    """The body of a stream that goes on for as long as the pool lets it."""
    sampling = {"max_new_tokens": 1000, "temperature": 0, "ignore_eos": True}
    return {"input_ids": ids, "sampling_params": sampling, "stream": True}


def resident_bytes(pid: int) -> int:
    """Memory of a worker's processes."""
    worker = psutil.Process(pid)
    return sum(one.memory_info().rss for one in (worker, *worker.children(recursive=True)))
