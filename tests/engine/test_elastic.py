"""Real workers join, get other weights, hang and leave, while the cluster answers exactly."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ps_sglang.cli import main
from ps_sglang.errors import LaunchError, UsageError
from ps_sglang.launch import Cluster, ClusterSpec, procfs
from ps_sglang.launch.cluster import Worker
from ps_sglang.launch.serve import ready_line
from tests.engine.served import Launch, Models, Served
from tests.support.engine_client import (
    RefusedError,
    assert_conserved,
    counters,
    generate,
    growth,
    post,
    together,
)
from tests.support.hf_reference import expected

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Prompts = Callable[[int, int], list[list[int]]]


@pytest.fixture(scope="module")
def served(llama: Models, launch: Launch) -> Served:
    return launch(llama, "a")


def guest_spec(served: Served, folder: Path, *decoders: str, **options: Any) -> ClusterSpec:
    """Another launcher's workers in the cluster of `served`."""
    models = served.models
    return ClusterSpec(
        prefill=f"base={models.base}",
        decoders=tuple(f"{name}={models.decoders[name]}" for name in decoders),
        join=served.cluster.url,
        log_dir=folder,
        **{"prefill_replicas": 0, **options},
    )


@pytest.fixture(scope="module")
def guests(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A second prefill worker, a second decode worker of decoder a, and one of a new decoder b."""
    folder = tmp_path_factory.mktemp("guests")
    with Cluster.start(guest_spec(served, folder, "a", "b", prefill_replicas=1)) as cluster:
        yield cluster


def workers(served: Served) -> dict[str, dict[str, Any]]:
    """The gateway's workers by URL."""
    with urllib.request.urlopen(f"{served.cluster.url}/workers") as response:
        return {worker["url"]: worker for worker in json.load(response)["workers"]}


def assert_exact(served: Served, decoder: str, inputs: list[list[int]], weights: str = "") -> None:
    """All prompts at once, each answer compared with the reference."""
    want = [reference(served, weights or decoder, ids) for ids in inputs]
    answers = together([partial(generate, served.cluster, decoder, ids) for ids in inputs])
    assert [answer["output_ids"] for answer in answers] == want


def reference(served: Served, weights: str, ids: list[int]) -> list[int]:
    tokens: list[int] = expected(served.models.base, served.models.decoders[weights], ids).tokens
    return tokens


def test_workers_of_other_pages_are_refused(served: Served, tmp_path: Path) -> None:
    spec = guest_spec(served, tmp_path, "b", engine_args=("--page-size", "16"))
    with pytest.raises(LaunchError, match="page_size: cluster 1, worker 16"):
        Cluster.start(spec)
    assert len(workers(served)) == 2


def test_nobody_joins_where_no_gateway_is(llama: Models, tmp_path: Path) -> None:
    decoders = (f"a={llama.decoders['a']}",)
    spec = ClusterSpec(f"base={llama.base}", decoders, join="http://127.0.0.1:1", log_dir=tmp_path)
    with pytest.raises(UsageError, match="no ps_sglang gateway answers"):
        Cluster.start(spec)


def test_workers_join(served: Served, guests: Cluster, prompts: Prompts) -> None:
    assert ready_line(guests).startswith(f"joined {served.cluster.url} after ")
    assert sorted(str(worker["decoder"]) for worker in workers(served).values()) == [
        "None", "None", "a", "a", "b",
    ]  # fmt: skip
    before = counters(guests)
    for decoder in ("b", "a"):
        assert_exact(served, decoder, prompts(6, 40))
    after = counters(guests)
    for name in ("decode-a", "decode-b"):
        assert growth(before, after, name, "handoff_requests") > 0
    assert growth(before, after, "prefill-0", "prefill_requests") > 0
    assert_conserved(guests)
    assert_conserved(served.cluster)


def test_a_decoder_gets_new_weights_on_a_warm_cache(
    served: Served, guests: Cluster, prompts: Prompts, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both workers of the decoder, one after the other; neither computes or pulls anything."""
    inputs = prompts(3, 60)
    gateway, folders = served.cluster.url, served.models.decoders
    names = [worker["name"] for worker in workers(served).values() if worker["decoder"] == "a"]
    for name in names:  # each prompt on each of the two, and so in its cache
        post(f"{gateway}/workers/{name}/drain", {})
        assert_exact(served, "a", inputs)
        post(f"{gateway}/workers/{name}/resume", {})
    before = (counters(served.cluster), counters(guests))
    assert main(["workers", "--gateway", gateway, "swap", "a", str(folders["b"])]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{n} serves {folders['b']}" for n in names]
    for _ in range(3):
        assert_exact(served, "a", inputs, weights="b")
    after = (counters(served.cluster), counters(guests))
    for old, new in zip(before, after, strict=True):
        assert growth(old, new, "prefill-0", "prefill_tokens.computed") == 0
        assert growth(old, new, "decode-a", "handoff_tokens.pulled") == 0
        assert growth(old, new, "decode-a", "handoff_tokens.tree") > 0
    assert main(["workers", "--gateway", gateway, "swap", "a", str(folders["a"])]) == 0
    assert_exact(served, "a", inputs)


@contextmanager
def stopped(worker: Worker) -> Iterator[None]:
    """All processes of a worker stopped: it accepts connections and answers nothing."""
    pids = [worker.pid, *procfs.descendants(worker.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("name", ["prefill-0", "decode-a"])
def test_requests_on_a_stopped_worker_go_to_another(
    served: Served, guests: Cluster, prompts: Prompts, name: str
) -> None:
    guest = next(worker for worker in guests.workers if worker.name == name)
    inputs, later = prompts(6, 40), prompts(6, 40)
    want = [reference(served, "a", ids) for ids in inputs]
    with stopped(guest):
        # Sent at once, before anybody can know; the references of others take their time.
        answers = together([partial(generate, served.cluster, "a", ids) for ids in inputs])
        assert [answer["output_ids"] for answer in answers] == want
        assert workers(served)[guest.url]["state"] == "broken"
        assert_exact(served, "a", later)
    while workers(served)[guest.url]["state"] != "good":
        pass
    assert_exact(served, "a", prompts(6, 40))
    assert_conserved(guests)
    assert_conserved(served.cluster)


def test_workers_leave(served: Served, guests: Cluster, prompts: Prompts) -> None:
    guests.stop()
    assert [worker["decoder"] for worker in workers(served).values()] == [None, "a"]
    with pytest.raises(RefusedError, match=r"404.*'b' does not exist"):
        generate(served.cluster, "b", prompts(1, 10)[0])
    assert_exact(served, "a", prompts(4, 40))
    assert_conserved(served.cluster)
