"""Requests with every kind of value in every field, on two prefill and two decode workers.

HOSTILE_REQUESTS says how many are sent (a few hundred if it is not set), HOSTILE_FIRST from which
seed on. The bar of a release is 5,000. CONFORMANCE_REQUESTS says how many of those that are made of
the OpenAPI document are sent, some hundreds at least.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.conformance.drive import drive
from tests.engine.served import Launch, Models, Served
from tests.support.engine_client import assert_conserved, generate
from tests.support.hf_reference import expected
from tests.support.hostile_requests import request

COUNT = int(os.environ.get("HOSTILE_REQUESTS", "300"))
OF_DOCUMENT = int(os.environ.get("CONFORMANCE_REQUESTS", "1"))
FIRST = int(os.environ.get("HOSTILE_FIRST", "0"))
AT_ONCE = 8
_DEADLINE_S = 120.0

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300 + COUNT + OF_DOCUMENT)]

Prompts = Callable[[int, int], list[list[int]]]
KILLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "an id beyond the vocabulary": ("/v1/completions", {"prompt": [49152, 504, 33]}),
    "an id beyond it at the end": ("/v1/completions", {"prompt": [33, 200000]}),
    "a negative id": ("/generate", {"input_ids": [-1, 5]}),
    "an id of a chat": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "x"}], "input_ids": [5, 10**6]},
    ),
    "too many logprobs": ("/v1/completions", {"prompt": "a", "logprobs": 60000}),
    "too many of a chat": (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "x"}],
            "logprobs": True,
            "top_logprobs": 1000000,
        },
    ),
    "too many of a native request": (
        "/generate",
        {"text": "a", "return_logprob": True, "top_logprobs_num": 49153},
    ),
    "no id as a stop": ("/v1/completions", {"prompt": "a", "stop_token_ids": [None]}),
    "a list of hidden states": ("/generate", {"text": "a", "return_hidden_states": [True]}),
    "a top-k of 64 bits": ("/v1/completions", {"prompt": "a", "top_k": 2**63 - 1}),
    "a bias without an end": ("/v1/completions", {"prompt": "a", "logit_bias": {"5": 1e300}}),
}


@pytest.fixture(scope="module")
def served(llama: Models, launch: Launch) -> Served:
    return launch(llama, "a", "b", prefill_replicas=2)


@pytest.fixture(scope="module")
def limits(llama: Models) -> tuple[int, int]:
    config = json.loads((llama.base / "config.json").read_text())
    return config["vocab_size"], config["max_position_embeddings"]


def send(url: str, route: str, body: dict[str, Any]) -> tuple[int, str]:
    """The status and the text of the answer."""
    http_request = urllib.request.Request(
        url + route, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(http_request, timeout=_DEADLINE_S) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def untold(status: int, answer: str, streamed: bool) -> bool:
    """Whether this is neither an answer nor a refusal with a reason in OpenAI's format."""
    if status == 200:
        return streamed and not answer.endswith("data: [DONE]\n\n")
    if not 400 <= status < 500:
        return True
    error = json.loads(answer)["error"]
    return set(error) != {"message", "type", "param", "code"} or len(error["message"]) <= 10


def state(served: Served) -> dict[str, tuple[int, int, str]]:
    """Each worker's process, how often it was called broken, and how it is."""
    with urllib.request.urlopen(served.cluster.url + "/workers", timeout=_DEADLINE_S) as response:
        told = {one["name"]: one for one in json.load(response)["workers"]}
    assert all(worker.alive for worker in served.cluster.workers)
    return {
        worker.name: (worker.pid, told[worker.name]["times_broken"], told[worker.name]["state"])
        for worker in served.cluster.workers
    }


def assert_exact(served: Served, prompts: Prompts) -> None:
    """Every pair of workers answers as the reference, and nothing is left over."""
    for ids in prompts(4, 40):
        for name in ("a", "b"):
            want = expected(served.models.base, served.models.decoders[name], ids)
            assert generate(served.cluster, name, ids)["output_ids"] == want.tokens
    assert_conserved(served.cluster)


@pytest.mark.parametrize("name", KILLERS)
def test_what_ended_workers_is_refused(served: Served, name: str) -> None:
    before = state(served)
    route, body = KILLERS[name]
    status, answer = send(served.cluster.url, route, {"model": "a", **body})
    assert status == 400, answer
    assert json.loads(answer)["error"]["param"]
    assert state(served) == before


def test_every_request_is_answered_or_refused(
    served: Served, limits: tuple[int, int], prompts: Prompts
) -> None:
    before = state(served)

    def ask(seed: int) -> tuple[int, str, str]:
        route, body = request(seed, *limits)
        body["model"] = "ab"[seed % 2]
        status, answer = send(served.cluster.url, route, body)
        fault = f"{seed} {route}: {status} {answer[-300:]}"
        return status, answer, fault if untold(status, answer, bool(body.get("stream"))) else ""

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(ask, range(FIRST, FIRST + COUNT)))
    faults = [fault for _, _, fault in answers if fault]
    assert not faults, f"{len(faults)} of {COUNT}:\n" + "\n".join(faults[:20])
    assert state(served) == before
    statuses = Counter(status for status, _, _ in answers)
    assert 0.1 < statuses[200] / COUNT < 0.9, statuses
    assert_exact(served, prompts)


def test_the_gateway_keeps_to_its_document(served: Served, prompts: Prompts) -> None:
    before = state(served)
    report = drive(served.cluster.url, OF_DOCUMENT, FIRST, longest=8)
    print(report)
    assert not report.faults, str(report)
    assert report.statuses[200] > 0.15 * report.statuses.total(), str(report)
    assert state(served) == before
    assert_exact(served, prompts)
