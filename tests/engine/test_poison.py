"""A request on which prefill workers die takes two of three with it, and no other request."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.engine.served import Launch, Models, Served
from tests.support.engine_client import RefusedError, assert_conserved, generate, in_work, together
from tests.support.hf_reference import expected

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

Prompts = Callable[[int, int], list[list[int]]]
LONG, SHORT = 1900, 100
OTHERS = 6


@pytest.fixture(scope="module")
def served(llama: Models, launch: Launch) -> Served:
    # Small chunks: the poisonous prompt is at work for long enough to be caught at it.
    arguments = ("--chunked-prefill-size", "4")
    return launch(llama, "a", prefill_replicas=3, engine_args=arguments)


def workers(served: Served) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{served.cluster.url}/workers", timeout=30) as response:
        states: list[dict[str, Any]] = json.load(response)["workers"]
    return states


def kill_each_that_has_it(served: Served, ended: threading.Event) -> list[str]:
    """Play the poison: SIGKILL every prefill worker that computes more than the others' tokens.

    The worker itself is asked. The gateway counts a request before the worker has it, and a worker
    killed then would not have died of it.
    """
    killed: list[str] = []
    alive = [one for one in served.cluster.workers if one.role == "prefill"]
    while not ended.is_set():
        for victim in list(alive):
            if in_work(victim.url).get("num_used_tokens", 0) > OTHERS * SHORT:
                os.killpg(victim.pid, signal.SIGKILL)
                alive.remove(victim)
                killed.append(victim.name)
        time.sleep(0.01)
    return killed


def test_a_poisonous_request(served: Served, prompts: Prompts) -> None:
    base, decoder = served.models.base, served.models.decoders["a"]
    (poison,) = prompts(1, LONG)
    others = prompts(OTHERS, SHORT)
    want = [expected(base, decoder, ids).tokens for ids in others]
    assert all(one["times_broken"] == 0 and one["state"] == "good" for one in workers(served))
    ended, killed = threading.Event(), list[str]()
    killer = threading.Thread(target=lambda: killed.extend(kill_each_that_has_it(served, ended)))
    killer.start()

    def ask(ids: list[int]) -> Any:
        try:
            return generate(served.cluster, "a", ids)
        except RefusedError as error:
            return error
        finally:
            if ids is poison:
                ended.set()

    refused, *answers = together([partial(ask, ids) for ids in (poison, *others)])
    killer.join()
    assert isinstance(refused, RefusedError)
    assert (refused.status, refused.body["error"]["code"]) == (422, "poison_request")
    assert len(killed) == 2
    assert [answer["output_ids"] for answer in answers] == want

    # It stays refused, and the worker that is left serves on, exactly.
    again = ask(poison)
    assert isinstance(again, RefusedError)
    assert again.status == 422
    (left,) = {one.name for one in served.cluster.workers if one.role == "prefill"} - {*killed}
    assert {one.name for one in served.cluster.workers if not one.alive} == {*killed}
    for ids, tokens in zip(others, want, strict=True):
        assert ask(ids)["output_ids"] == tokens
    with urllib.request.urlopen(f"{served.cluster.url}/ready", timeout=30) as response:
        assert json.load(response)["prefill"] == [left]
    assert_conserved(served.cluster, *killed)
