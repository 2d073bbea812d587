"""A cluster on three Ray nodes of this machine: exact, scaled by its load, whole after a loss."""

from __future__ import annotations

import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from ray.cluster_utils import Cluster as RayNodes

from ps_sglang.launch import procfs
from ps_sglang.workers.client import READY_STATES, WorkersClient
from tests.engine.served import Models
from tests.support.engine_client import post
from tests.support.hf_reference import expected
from tests.support.processes import MARK, Launcher, Marked

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

TOKENS = 128
Prompts = Callable[[int, int], list[list[int]]]


@pytest.fixture(scope="module")
def marked() -> Iterator[Marked]:
    """All processes of this module; none of them may be left."""
    mark = uuid.uuid4().hex
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, mark)
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else Ray writes a token into the home folder
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        processes = Marked(mark)
        yield processes
        processes.wait_until_gone()
        assert processes.kill_all() == []


@pytest.fixture(scope="module")
def nodes(marked: Marked) -> Iterator[RayNodes]:
    """A head without CPUs, and two nodes each of which could hold all workers."""
    # Not below pytest's folder: the paths of sockets may not be long.
    with TemporaryDirectory(prefix="ray-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        Path(folder, "ray").mkdir()
        head = {
            "num_cpus": 0,
            "include_dashboard": False,
            "_system_config": {"health_check_failure_threshold": 2, "health_check_period_ms": 1000},
        }
        cluster = RayNodes(initialize_head=True, head_node_args=head)
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=4)
            yield cluster
        finally:
            cluster.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def launcher(
    nodes: RayNodes, llama: Models, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Launcher]:
    folder = tmp_path_factory.mktemp("on-ray")
    spec = {
        "prefill": f"base={llama.base}",
        "decoders": [f"a={llama.decoders['a']}"],
        "port": 0,
        "ray": {
            "decoders": {"a": {"max_replicas": 3}},
            "scaling": {"target_requests": 2, "up_after": 1, "down_after": 3},
        },
    }
    file = folder / "cluster.yaml"
    file.write_bytes(msgspec.yaml.encode(spec))
    words = ["--on", "ray", "--ray-address", nodes.address, "--spec", str(file)]
    running = Launcher(*words, temporary=folder / "tmp")
    yield running
    running.process.send_signal(signal.SIGINT)
    assert running.end(60) == 0, running.output


@pytest.fixture(scope="module")
def url(launcher: Launcher) -> str:
    line = launcher.wait_for("logs: ray logs", 200)  # those of workers name their own
    return line.split("ready ")[1].split()[0]


def serving(url: str, role: str) -> list[dict[str, Any]]:
    """The workers of a role that take requests."""
    workers = WorkersClient(url, 30.0).list()
    return [one for one in workers if one["role"] == role and one["state"] in READY_STATES]


def until(holds: Callable[[], bool]) -> None:
    """Ask until it holds; the test's own deadline ends that."""
    while not holds():
        pass


def answer(url: str, ids: list[int]) -> list[int]:
    sampling = {"max_new_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    body = {"input_ids": ids, "sampling_params": sampling}
    tokens: list[int] = post(f"{url}/models/a/generate", body)["output_ids"]
    return tokens


class Clients:
    """Threads that ask the same again and again; `wrong` has what was no right answer."""

    def __init__(self, url: str, ids: list[int], want: list[int]) -> None:
        self._url, self._ids, self._want = url, ids, want
        self.right = 0
        self.wrong: list[object] = []

    @contextmanager
    def running(self, count: int) -> Iterator[None]:
        ended = threading.Event()

        def ask() -> None:
            while not ended.is_set():
                try:
                    got: object = answer(self._url, self._ids)
                except Exception as error:
                    got = error
                if got == self._want:
                    self.right += 1
                else:
                    self.wrong.append(got)

        threads = [threading.Thread(target=ask) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join()


def reference(models: Models, ids: list[int]) -> list[int]:
    tokens: list[int] = expected(models.base, models.decoders["a"], ids, TOKENS).tokens
    return tokens


def test_a_decoder_follows_its_load(url: str, llama: Models, prompts: Prompts) -> None:
    """From one worker to three and back, and no request is wrong or lost on the way."""
    (ids,) = prompts(1, 40)
    clients = Clients(url, ids, reference(llama, ids))
    assert (len(serving(url, "prefill")), len(serving(url, "decode"))) == (1, 1)
    with clients.running(8):
        until(lambda: len(serving(url, "decode")) == 3)
    with clients.running(1):
        until(lambda: len(serving(url, "decode")) == 1)
    assert clients.wrong == []
    assert clients.right > 0


def test_workers_of_a_killed_node_come_back_elsewhere(
    url: str, nodes: RayNodes, llama: Models, prompts: Prompts
) -> None:
    (ids,) = prompts(1, 40)
    want = reference(llama, ids)
    assert answer(url, ids) == want
    before = {one["url"] for role in ("prefill", "decode") for one in serving(url, role)}
    # Ray packs: one node has both.
    (killed,) = [one for one in nodes.worker_nodes if children(one)]
    kill_node(nodes, killed)
    until(lambda: back(url, before))
    assert answer(url, ids) == want
    (other,) = nodes.worker_nodes
    assert len(children(other)) == 2


def back(url: str, before: set[str]) -> bool:
    workers = [serving(url, role) for role in ("prefill", "decode")]
    return all(len(one) == 1 and one[0]["url"] not in before for one in workers)


def children(node: Any) -> list[int]:
    """What runs on a node of ours: the processes below its actors."""
    found = []
    for pid in procfs.descendants(raylet(node)):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        except OSError:
            continue
        if "ps_sglang.launch.ray.child" in words:
            found.append(pid)
    return found


def kill_node(nodes: RayNodes, node: Any) -> None:
    """Everything on it ends without a word, as with the loss of a machine."""
    pids = [raylet(node), *procfs.descendants(raylet(node))]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    nodes.remove_node(node, allow_graceful=False)


def raylet(node: Any) -> int:
    (info,) = node.all_processes["raylet"]
    pid: int = info.process.pid
    return pid
