"""The zmq backend in real engines: which way pages go, and what becomes of bad and dead ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ps_sglang.engine.compat.srt import KVClassType, TransferBackend
from ps_sglang.engine.transfer import backend, endpoints
from tests.engine import spoil_pages
from tests.engine.served import Launch, Models, Served
from tests.support.engine_client import (
    RefusedError,
    assert_conserved,
    generate,
    in_work,
    metric,
    post,
)
from tests.support.hf_reference import expected

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Prompts = Callable[[int, int], list[list[int]]]
Served2 = tuple[Served, Path]


@pytest.fixture(scope="module")
def served(llama: Models, launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Served2:
    """A cluster, and the folder that says how many batches are to be spoiled."""
    folder = tmp_path_factory.mktemp("plugin")
    spoil_pages.install(folder)
    spoil_pages.spoil(folder)
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("PYTHONPATH", f"{folder}:{Path(__file__).parent}", prepend=os.pathsep)
        environ.setenv(spoil_pages.SPOIL_PAGES, str(folder))
        return launch(llama, "a", "b", engine_args=("--chunked-prefill-size", "64")), folder


def test_pages_are_copied_from_the_pool_on_one_host(served: Served2, prompts: Prompts) -> None:
    cluster = served[0].cluster
    decode = cluster.workers[1].url
    (ids,) = prompts(1, 600)
    want = expected(served[0].models.base, served[0].models.decoders["a"], ids)
    assert generate(cluster, "a", ids)["output_ids"] == want.tokens
    moved = metric(decode, "transfer_bytes", path="shm")
    assert moved == metric(decode, "handoff_bytes") > 0
    assert metric(decode, "transfer_batches", path="shm") >= 600 // 64
    assert metric(decode, "transfer_bytes", path="tcp") == 0
    assert metric(decode, "transfer_damaged") == 0
    assert_conserved(cluster)


def test_damaged_pages_are_pulled_again_once(served: Served2, prompts: Prompts) -> None:
    cluster, folder = served[0].cluster, served[1]
    decode = cluster.workers[1].url
    (ids,) = prompts(1, 300)
    want = expected(served[0].models.base, served[0].models.decoders["a"], ids)
    spoil_pages.spoil(folder, copied=2)
    assert generate(cluster, "a", ids)["output_ids"] == want.tokens
    assert spoil_pages.left(folder) == (0, 0)
    assert metric(decode, "transfer_damaged", path="shm") == 2
    assert metric(decode, "transfer_pulled_again", path="shm") == 2
    assert metric(decode, "transfer_batches", path="tcp") == 2
    assert_conserved(cluster)


def test_pages_that_come_damaged_twice_fail_the_request(served: Served2, prompts: Prompts) -> None:
    """No answer is made of them, then or later: neither by this prompt nor by who gets the pages.

    Those pages are the last to be given out again, so what follows fills the pool.
    """
    cluster, folder = served[0].cluster, served[1]
    models, decode = served[0].models, cluster.workers[1].url
    (ids,), others = prompts(1, 300), prompts(8, 600)
    failed = metric(decode, "handoff_failures", reason="damaged")
    spoil_pages.spoil(folder, copied=10**6, over_tcp=10**6)
    for stream in (False, True):
        with pytest.raises(RefusedError, match=r"came damaged from \S+, twice") as refused:
            generate(cluster, "a", ids, stream=stream)
        assert refused.value.status == 502
    assert metric(decode, "handoff_failures", reason="damaged") == failed + 2
    assert_conserved(cluster)
    spoil_pages.spoil(folder)
    for prompt in (ids, *others, ids):
        want = expected(models.base, models.decoders["a"], prompt, 4)
        assert generate(cluster, "a", prompt, 4)["output_ids"] == want.tokens
    assert_conserved(cluster)


class Legs:
    """Both legs of one request, sent to the workers without a gateway in between."""

    def __init__(self, served: Served, room: int) -> None:
        prefill = served.cluster.plan.workers[0]
        self.urls = [spec.url for spec in served.cluster.plan.workers]
        self._common = {
            "sampling_params": {"max_new_tokens": 4, "temperature": 0},
            "bootstrap_host": "127.0.0.1",
            "bootstrap_port": prefill.bootstrap_port,
            "bootstrap_room": room,
        }
        self._pool = ThreadPoolExecutor(2)

    def send(self, worker: int, ids: list[int]) -> Future[Any]:
        """Send the leg of the worker with this number in the plan."""
        body = {"input_ids": ids, **self._common}
        return self._pool.submit(post, f"{self.urls[worker]}/generate", body)


def test_workers_that_tokenize_differently_are_caught(served: Served2, prompts: Prompts) -> None:
    (ids,) = prompts(1, 40)
    legs = Legs(served[0], 501)
    both = [legs.send(0, ids), legs.send(1, [*ids[:-2], ids[-2] ^ 1, ids[-1]])]
    for leg in both:
        with pytest.raises(RefusedError, match="the workers disagree on the base prefix: 39 tok"):
            leg.result()
    # The boundary token is the decoder's own business.
    want = expected(served[0].models.base, served[0].models.decoders["a"], ids)
    legs = Legs(served[0], 502)
    legs.send(0, [*ids[:-1], 11])
    assert legs.send(1, ids).result()["output_ids"] == want.tokens[:4]
    assert_conserved(served[0].cluster)


def test_lease_of_a_killed_decode_worker_expires(served: Served2, prompts: Prompts) -> None:
    cluster = served[0].cluster
    prefill, decode = cluster.workers[0], cluster.workers[2]
    cached, ids = prompts(2, 600)
    generate(cluster, "b", cached)
    legs = Legs(served[0], 503)
    dead = legs.send(2, ids)
    while "decode_transfer_queue_reqs" not in in_work(decode.url):
        assert not dead.done()
    os.killpg(decode.pid, signal.SIGSTOP)  # it has asked, and will take nothing
    leased = legs.send(0, ids)
    while "prefill_inflight_queue_reqs" not in in_work(prefill.url):
        assert not leased.done()
    os.killpg(decode.pid, signal.SIGKILL)
    with pytest.raises(OSError, match=r"."):
        dead.result()
    with pytest.raises(RefusedError, match=r"decode worker tcp://\S+ was not heard of for 15 s"):
        leased.result()
    assert metric(prefill.url, "transfer_expired") == 1
    assert_conserved(cluster, decode.name)
    want = expected(served[0].models.base, served[0].models.decoders["a"], ids)
    assert generate(cluster, "a", ids)["output_ids"] == want.tokens


def test_backend_is_selected_by_name_beside_sglangs_own() -> None:
    from sglang.srt.disaggregation.utils import get_kv_class

    stock = getattr(get_kv_class, "__wrapped__", get_kv_class)
    extended = backend.ExtendedTransferBackend
    assert {b.name for b in TransferBackend} <= {b.name for b in extended}
    assert backend.get_kv_class(stock, extended("zmq"), KVClassType.SENDER) is endpoints.ZmqKVSender
    mooncake: Any = backend.get_kv_class(stock, TransferBackend("mooncake"), KVClassType.SENDER)
    assert mooncake.__name__ == "MooncakeKVSender"
    assert not mooncake.supports_host_tensor_indices, "its CUDA events end a CPU worker"


@pytest.mark.parametrize("jump_s", [-86_400.0, 86_400.0])
def test_a_clock_that_is_set_ends_no_handoff(
    jump_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And keeps none for ever: SGLang's time limits hold for time that really passes."""
    ended: list[Any] = []
    manager = SimpleNamespace(
        defer_decode_allocation=False, bootstrap_timeout=300, waiting_timeout=300,
        record_failure=lambda _room, reason: ended.append(reason), update_status=lambda *_: None,
    )  # fmt: skip
    sender = object.__new__(endpoints.ZmqKVSender)
    receiver = object.__new__(endpoints.ZmqKVReceiver)
    now, wall = time.monotonic(), time.time()
    for end in (sender, receiver):
        end.kv_mgr, end.bootstrap_room, end.init_time = manager, 1, wall
    sender._began = receiver._asked = now
    receiver.abort_notified, receiver.bootstrap_infos = True, None
    receiver.invalidate_cached_bootstrap_infos = lambda: None
    monkeypatch.setattr(time, "time", lambda: wall + jump_s)
    assert sender._check_bootstrap_timeout() is None
    assert receiver._check_waiting_timeout() is None
    monkeypatch.setattr(time, "monotonic", lambda: now + 301)
    sender._check_bootstrap_timeout()
    receiver._check_waiting_timeout()
    assert len(ended) == 2
