"""Clients that hang up, at every stage: both workers stop, and nothing is lost (I6, I7)."""

from __future__ import annotations

import json
import random
import socket
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from urllib.parse import urlsplit

import pytest

from tests.engine.served import Launch, Models, Served
from tests.support.engine_client import (
    RefusedError,
    assert_conserved,
    generate,
    in_work,
    post,
    together,
)
from tests.support.hf_reference import expected

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Prompts = Callable[[int, int], list[list[int]]]


@pytest.fixture(scope="module", params=["overlap off", "overlap on the decode workers"])
def served(request: pytest.FixtureRequest, llama: Models, launch: Launch) -> Served:
    overlap = () if request.param == "overlap off" else ("--no-disable-overlap-schedule",)
    return launch(
        llama, "a", "b",
        engine_args=("--chunked-prefill-size", "64"),
        decode_engine_args=("--max-total-tokens", "1500", *overlap),
        allow_unsafe=True,  # for /pause_generation
    )  # fmt: skip


def hang_up(url: str, body: dict[str, object], after_s: float, key: str) -> None:
    """Send a request, and close the connection `after_s` seconds later, answer or none.

    `key` is what opens a worker.
    """
    address = urlsplit(url)
    payload = json.dumps(body).encode()
    lines = ("host: x", f"content-length: {len(payload)}", f"authorization: {key}")
    head = "\r\n".join((f"POST {address.path} HTTP/1.1", *lines, "", ""))
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode() + payload)
        connection.settimeout(after_s)
        try:
            connection.recv(1)
        except TimeoutError:
            return


def test_hang_ups_at_every_stage(served: Served, prompts: Prompts) -> None:
    """Through the gateway and on single legs, whose other half never comes."""
    source = random.Random(3)
    plan = {spec.name: spec for spec in served.cluster.plan.workers}
    urls = [
        f"{served.cluster.url}/models/a/generate",
        f"{served.cluster.url}/models/b/generate",
        *(f"{spec.url}/generate" for spec in plan.values()),
    ]
    calls = []
    for number in range(150):
        url = urls[number % len(urls)]
        body: dict[str, object] = {
            "input_ids": prompts(1, source.choice((1, 2, 30, 200, 700)))[0],
            "sampling_params": {"max_new_tokens": source.choice((1, 30, 300)), "temperature": 0},
            "stream": source.random() < 0.5,
        }
        if "/models/" not in url:
            body |= {
                "bootstrap_host": "127.0.0.1",
                "bootstrap_port": plan["prefill-0"].bootstrap_port,
                "bootstrap_room": source.getrandbits(60),
            }
        after_s = source.choice((0.001, 0.005, 0.02, 0.1, 0.4))
        calls.append(partial(hang_up, url, body, after_s, served.cluster.key.authorization))
    together(calls)
    assert_conserved(served.cluster)
    for name in ("a", "b"):
        (ids,) = prompts(1, 40)
        want = expected(served.models.base, served.models.decoders[name], ids)
        assert generate(served.cluster, name, ids)["output_ids"] == want.tokens


@pytest.mark.parametrize("first", ["prefill", "decode"])
def test_other_leg_of_an_aborted_request_ends_at_once(
    served: Served, first: str, prompts: Prompts
) -> None:
    """One worker's abort is remembered until the other leg comes, which may be late."""
    prefill, decode = served.cluster.plan.workers[:2]
    here, there = (prefill, decode) if first == "prefill" else (decode, prefill)
    queue = "prefill_bootstrap_queue_reqs" if first == "prefill" else "decode_transfer_queue_reqs"
    body = {
        "input_ids": prompts(1, 30)[0],
        "rid": f"aborted-{first}",
        "bootstrap_host": "127.0.0.1",
        "bootstrap_port": prefill.bootstrap_port,
        "bootstrap_room": 4711 if first == "prefill" else 4712,
    }
    with ThreadPoolExecutor(1) as pool:
        leg = pool.submit(post, f"{here.url}/generate", body)
        while queue not in in_work(here.url):
            assert not leg.done()
        abort = json.dumps({"rid": body["rid"]}).encode()
        json_body = {"content-type": "application/json"}
        with urllib.request.urlopen(
            urllib.request.Request(f"{here.url}/abort_request", abort, json_body)
        ):
            pass
        with pytest.raises(RefusedError, match=r"[Aa]bort"):
            leg.result()
    with pytest.raises(RefusedError, match=f"the {first} worker aborted the request"):
        post(f"{there.url}/generate", body)
    assert_conserved(served.cluster)


def test_weight_update_ends_requests_by_name(served: Served, prompts: Prompts) -> None:
    """SGLang would have the prefill worker recompute what the decoder has said (I4)."""
    decode = served.cluster.plan.workers[1]
    (ids,) = prompts(1, 30)
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(generate, served.cluster, "a", ids, 1400)
        while "num_running_reqs" not in in_work(decode.url):
            assert not request.done()
        post(f"{decode.url}/pause_generation", {"mode": "retract"})
        post(f"{decode.url}/continue_generation", {})
        with pytest.raises(RefusedError, match=r"409.*retracted for a weight update"):
            request.result()
    want = expected(served.models.base, served.models.decoders["a"], ids)
    assert generate(served.cluster, "a", ids)["output_ids"] == want.tokens
    assert_conserved(served.cluster)


def test_concurrent_requests_after_the_faults(served: Served, prompts: Prompts) -> None:
    requests = [(name, ids) for ids in prompts(5, 30) for name in ("a", "b")]
    want = [expected(served.models.base, served.models.decoders[n], ids) for n, ids in requests]
    answers = together([partial(generate, served.cluster, n, ids) for n, ids in requests])
    assert [answer["output_ids"] for answer in answers] == [w.tokens for w in want]
    assert_conserved(served.cluster)
