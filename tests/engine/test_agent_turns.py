"""What the gateway does for agent programs, on real workers: routing by events, hints, sessions."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable
from functools import partial
from threading import Thread
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
    post,
)
from tests.support.hf_reference import expected

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Prompts = Callable[[int, int], list[list[int]]]
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def served(llama: Models, launch: Launch) -> Served:
    return launch(llama, "a", "b")


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, what


def is_running(url: str) -> bool:
    return "num_running_reqs" in in_work(url)


def held(served: Served, body: dict[str, Any]) -> dict[str, int]:
    """What the gateway believes the workers hold of the prompt in `body`."""
    debug = post(f"{served.cluster.url}/debug/route", body)
    held_tokens: dict[str, int] = debug["decisions"][0]["candidates"][0]["held"]
    return held_tokens


@pytest.mark.parametrize("form", ["ids", "text", "chat"])
def test_the_gateway_knows_what_workers_hold(served: Served, prompts: Prompts, form: str) -> None:
    """Exactly, to the token, and not before the events have told it: nothing is estimated."""
    words = f"{form}: the actor looks at the table, then at the door. " * 3
    forms: dict[str, tuple[str, dict[str, Any]]] = {
        "ids": ("/generate", {"input_ids": prompts(1, 200)[0]}),
        "text": ("/generate", {"text": words}),
        "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": words}]}),
    }
    path, body = forms[form]
    body["model"] = "a"
    limit: dict[str, Any] = (
        {"max_tokens": 2} if form == "chat" else {"sampling_params": {"max_new_tokens": 2}}
    )
    # Straight to the workers' trees, by another tenant first: that one's pages are not ours.
    post(served.cluster.url + path, {**body, **limit, "cache_salt": "other"})
    assert held(served, body) == {"prefill": 0, "decode": 0}
    answer = post(served.cluster.url + path, {**body, **limit})
    count = answer["usage"] if form == "chat" else answer["meta_info"]
    prefix = count["prompt_tokens"] - 1
    until(
        lambda: held(served, body) == {"prefill": prefix, "decode": prefix},
        f"the gateway believes in {held(served, body)}, not {prefix}",
    )
    assert held(served, {**body, "model": "b"}) == {"prefill": prefix, "decode": 0}


def test_next_leaves_the_next_decoder_only_what_is_new(served: Served, prompts: Prompts) -> None:
    (conversation,) = prompts(1, 90)
    before = counters(served.cluster)
    output = generate(served.cluster, "a", conversation, 12, hints={"next": "b"})["output_ids"]
    turn = len(conversation) + len(output) - 1
    until(
        lambda: (
            growth(before, counters(served.cluster), "decode-b", "handoff_tokens.pulled") == turn
        ),
        "the turn was not brought to b",
    )
    before = counters(served.cluster)
    conversation = conversation + output + prompts(1, 9)[0]
    answer = generate(served.cluster, "b", conversation, 12)
    after = counters(served.cluster)
    assert growth(before, after, "prefill-0", "prefill_tokens.computed") == 9
    assert growth(before, after, "decode-b", "handoff_tokens.pulled") == 9
    want = expected(served.models.base, served.models.decoders["b"], conversation, 12)
    assert answer["output_ids"] == want.tokens
    assert_conserved(served.cluster)


def test_ending_a_session_stops_its_work_on_all_workers(served: Served, prompts: Prompts) -> None:
    failures: dict[str, RefusedError] = {}

    def talk(decoder: str) -> None:
        (prompt,) = prompts(1, 40)
        endless = {"ignore_eos": True}
        try:
            generate(served.cluster, decoder, prompt, 400, sampling=endless, session_id="talk")
        except RefusedError as error:
            failures[decoder] = error

    talks = [Thread(target=talk, args=(decoder,)) for decoder in "ab"]
    for one in talks:
        one.start()
    decode = [worker for worker in served.cluster.workers if worker.name.startswith("decode-")]
    for worker in decode:
        until(partial(is_running, worker.url), "it did not start")
    request = urllib.request.Request(f"{served.cluster.url}/sessions/talk", method="DELETE")
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
        assert b'"aborted": 2' in response.read()
    for one in talks:
        one.join()
    assert {name: failure.status for name, failure in failures.items()} == {"a": 409, "b": 409}
    assert_conserved(served.cluster)
