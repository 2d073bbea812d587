"""A prefill worker dies: its requests move to the other one or fail by name, and none hangs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.engine.served import Launch, Models, Served
from tests.support.engine_client import RefusedError, assert_conserved, generate, together
from tests.support.hf_reference import expected

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Prompts = Callable[[int, int], list[list[int]]]


@pytest.fixture(scope="module")
def served(llama: Models, launch: Launch) -> Served:
    return launch(llama, "a", "b", prefill_replicas=2)


def test_killed_among_requests(served: Served, prompts: Prompts) -> None:
    sent = [(name, ids) for ids in prompts(12, 600) for name in ("a", "b")]
    want = [expected(served.models.base, served.models.decoders[n], ids).tokens for n, ids in sent]
    victim = served.cluster.workers[1]
    assert victim.name == "prefill-1"

    def ask(number: int) -> Any:
        if number == len(sent) // 2:
            os.killpg(victim.pid, signal.SIGKILL)
        try:
            return generate(served.cluster, *sent[number])["output_ids"]
        except RefusedError as error:
            return error

    for number, answer in enumerate(together([partial(ask, n) for n in range(len(sent))])):
        if isinstance(answer, RefusedError):
            assert answer.status in (502, 503)
            assert "prefill-1" in str(answer.body)
        else:
            assert answer == want[number]
    # Afterwards everything goes to the worker that is left, and is exact.
    for (name, ids), tokens in zip(sent, want, strict=True):
        assert generate(served.cluster, name, ids)["output_ids"] == tokens
    assert_conserved(served.cluster, "prefill-1")
