"""Each request's trace: what both workers did for it, by their event streams."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ps_sglang.events.messages import Span
from tests.engine.both_legs import ask
from tests.engine.served import Launch, Models, Served, kinds
from tests.engine.tree_mirror import TreeMirror, mirroring
from tests.support import monitoring
from tests.support.engine_client import assert_conserved

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Prompts = Callable[[int, int], list[list[int]]]
Mirrors = dict[str, TreeMirror]


OFF, ON = "overlap off", "overlap on the decode workers"


@pytest.fixture(scope="module", params=kinds([ON], [OFF]))
def served(request: pytest.FixtureRequest, llama: Models, launch: Launch) -> Served:
    overlap = () if request.param == OFF else ("--no-disable-overlap-schedule",)
    flags = ("--page-size", "16", "--chunked-prefill-size", "16")
    return launch(llama, "a", "b", engine_args=flags, decode_engine_args=overlap)


@pytest.fixture(scope="module")
def mirrors(served: Served) -> Iterator[Mirrors]:
    with mirroring(served.cluster) as caches:
        yield caches


Pair = tuple[Span, Span]


def told(mirrors: Mirrors, decoder: str, rid: str) -> Pair:
    """What the prefill worker and the decode worker tell of a request."""
    return mirrors["prefill-0"].span(rid), mirrors[f"decode-{decoder}"].span(rid)


def test_counts_and_stages(served: Served, mirrors: Mirrors, prompts: Prompts) -> None:
    """A cold prompt; the same again; on another decoder; and one page more."""
    (ids,) = prompts(1, 16 * 12 + 1)
    page_bytes = None
    for decoder, prompt, computed, tree, held_there in (
        ("a", ids, 192, 0, 0),
        ("a", ids, 0, 0, 192),
        ("b", ids, 0, 192, 0),
        ("b", ids + ids[:16], 16, 192, 192),
    ):
        before = time.time()
        rid, _ = ask(served.cluster, decoder, prompt)
        prefill, decode = told(mirrors, decoder, rid)
        assert (prefill.role, prefill.computed, prefill.held) == ("prefill", computed, tree)
        pulled = len(prompt) - 1 - held_there
        assert (decode.role, decode.held, decode.pulled) == ("decode", held_there, pulled)
        page_bytes = page_bytes or decode.pulled_bytes // 12
        assert decode.pulled_bytes == pulled // 16 * page_bytes
        assert (prefill.prefill > 0) == (computed > 0)
        assert decode.first_step > 0
        assert decode.decode > 0
        assert prefill.wait == 0
        for record in (prefill, decode):
            assert before - 1 < record.began < time.time() + 1
            stages = (record.queue, record.prefill, record.send, record.pull)
            spent = sum(stages) + record.first_step + record.decode
            assert 0 < spent < time.time() - before
    assert_conserved(served.cluster)


def test_no_tokens_asked(served: Served, mirrors: Mirrors, prompts: Prompts) -> None:
    (ids,) = prompts(1, 33)
    rid, _ = ask(served.cluster, "a", ids, 0)
    _, decode = told(mirrors, "a", rid)
    assert (decode.pulled, decode.first_step, decode.decode) == (32, 0, 0)


def test_who_waits_for_anothers_prefill_says_so(
    served: Served, mirrors: Mirrors, prompts: Prompts
) -> None:
    """The second comes when the first chunk of 112 is in the tree."""
    (ids,) = prompts(1, 16 * 112 + 1)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, served.cluster, "a", ids)
        mirrors["prefill-0"].wait_for(ids[:16])
        rid, _ = ask(served.cluster, "b", ids)
        leader, _ = told(mirrors, "a", first.result()[0])
    other, _ = told(mirrors, "b", rid)
    assert (leader.wait, leader.computed, leader.held) == (0, 16 * 112, 0)
    assert (other.computed, other.held) == (0, 16 * 112)
    assert other.wait > 0
    assert other.prefill == 0


def test_through_the_gateway(served: Served, prompts: Prompts) -> None:
    """A second decoder's turn on one prompt: told with the answer, and counted as saved."""
    (ids,) = prompts(1, 16 * 64 + 1)
    traces = {name: ask_gateway(served, name, ids)["timeline"] for name in "ab"}
    assert traces["a"]["tokens"].items() >= {"computed": 1024, "tree": 0, "own": 0}.items()
    assert traces["b"]["tokens"].items() >= {"computed": 0, "tree": 1024, "pulled": 1024}.items()
    for name, timeline in traces.items():
        assert timeline["prefill_worker"] == "prefill-0"
        assert timeline["decode_worker"] == f"decode-{name}"
        seconds = timeline["seconds"]
        total = seconds.pop("total")
        assert [*seconds] == ["queue", "wait", "prefill", "pull", "first_step", "decode"]
        assert 0 < sum(seconds.values()) < total
    with urllib.request.urlopen(f"{served.cluster.url}/metrics") as response:
        text = response.read().decode()
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert values["ps_sglang_gateway_base_tokens_total", "b", "pulled"] == 1024
    assert values["ps_sglang_gateway_pulled_bytes_total", "b"] > 0
    exported = monitoring.samples(text)
    for told in monitoring.samples(monitoring.WORKER_METRICS):
        if "failures" not in told.name:  # nothing has failed
            same = monitoring.Selected(told.name, labels=set(told.labels) | {"worker"})
            assert same.is_in(exported), told.name
    # The gateway knows in blocks of text who sent what first.
    assert 512 < values["ps_sglang_gateway_saved_tokens_total", "b"] <= 1024
    assert 0 < values["ps_sglang_gateway_cross_decoder_hit_ratio",] <= 0.5


def ask_gateway(served: Served, decoder: str, ids: list[int]) -> dict[str, Any]:
    body = {"input_ids": ids, "sampling_params": {"max_new_tokens": 8, "temperature": 0}}
    request = urllib.request.Request(
        f"{served.cluster.url}/models/{decoder}/generate",
        json.dumps(body).encode(),
        {"content-type": "application/json", "x-timeline": "1"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer
