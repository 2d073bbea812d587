"""Real workers that come back as others: refused, no wrong answer, no hang."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest
import xxhash
import zmq

from benchmarks.worker_keys import let_in
from ps_sglang.cluster_key import VARIABLE, ClusterKey
from ps_sglang.engine.settings import ALLOW_UNVERIFIED, BASE_FINGERPRINT
from ps_sglang.engine.transfer.messages import TAG
from ps_sglang.launch import flags
from ps_sglang.launch.environment import worker_environment
from ps_sglang.launch.messages import Start, StartMethod
from ps_sglang.launch.spec import WorkerSpec
from tests.engine.plain_server import free_port, wait_until_healthy
from tests.engine.served import Launch, Models, Served
from tests.support.engine_client import (
    RefusedError,
    assert_conserved,
    generate,
    metric,
    post,
    together,
)
from tests.support.hf_reference import expected
from tests.support.strangers import (
    FRAMES,
    gets_through,
    http_status,
    knock,
    listening_ports,
    send,
    speaking_zmtp,
)

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

Prompts = Callable[[int, int], list[list[int]]]


@pytest.fixture(scope="module")
def served(llama: Models, launch: Launch) -> Served:
    return launch(llama, "a")


class Guests:
    """Workers started by hand, one after another on one port, by the cluster's fork server."""

    def __init__(self, served: Served, folder: Path) -> None:
        self._served, self._folder = served, folder
        self._link = served.cluster._link
        self._started: list[str] = []
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        let_in(served.cluster, self.url)

    def start(self, like: WorkerSpec, fingerprint: str | None = None, **changed: Any) -> None:
        """A worker with the flags of `like`, some of them changed, in the last one's place."""
        self.kill()
        name = f"guest-{self.port}-{len(self._started)}"  # the host remembers all names
        self._started.append(name)
        guest_flags = {"--port": self.port, "--nccl-port": free_port()}
        guest_flags |= {f"--{flag.replace('_', '-')}": value for flag, value in changed.items()}
        folder = self._folder / name
        plan = self._served.cluster.plan
        env = worker_environment(os.environ, folder, like.role, cpu=True) | {
            BASE_FINGERPRINT: fingerprint or plan.fingerprint,
            ALLOW_UNVERIFIED: "0",
            VARIABLE: str(self._served.cluster._processes._key_file),
        }
        argv = tuple(_replaced(like.argv, guest_flags))
        log = str(self._folder / f"{name}.log")
        self._link.send(Start(name, "sglang.launch_server", argv, env, log, StartMethod.FORK))
        wait_until_healthy(self.url)

    def kill(self) -> None:
        """End the last one at once."""
        if self._started:
            self._link.stop(self._started[-1], 0.0)


def _replaced(argv: tuple[str, ...], changed: dict[str, Any]) -> Iterator[str]:
    for name, words in flags.groups(argv):
        yield from ([name, str(changed[name])] if name in changed else words)


@pytest.fixture
def guests(served: Served) -> Iterator[Guests]:
    # SGLang's sockets lie in it, and the path of a socket must be short.
    with TemporaryDirectory() as folder:
        started = Guests(served, Path(folder))
        try:
            yield started
        finally:
            for worker in workers(served):
                if worker["url"] == started.url:
                    leave = f"{served.cluster.url}/workers/{worker['name']}?now=1"
                    call = urllib.request.Request(leave, method="DELETE")
                    urllib.request.urlopen(call).close()
            started.kill()


def workers(served: Served) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{served.cluster.url}/workers") as response:
        states: list[dict[str, Any]] = json.load(response)["workers"]
    return states


def becomes(served: Served, url: str, state: str) -> dict[str, Any]:
    """Wait until the gateway sees the worker at `url` so."""
    while True:
        found = next(one for one in workers(served) if one["url"] == url)
        if found["state"] == state:
            return found
        time.sleep(0.05)  # between looks at what only the gateway can tell


def events_config() -> dict[str, str]:
    events = {
        "publisher": "ps_sglang",
        "endpoint": f"tcp://127.0.0.1:{free_port()}",
        "replay_endpoint": f"tcp://127.0.0.1:{free_port()}",
        "bind": True,
    }
    return {"kv_events_config": json.dumps(events)}


@contextmanager
def asked_all_the_time(served: Served, decoder: str, ids: list[int]) -> Iterator[list[Any]]:
    """One request after another; what came of each."""
    over = threading.Event()
    outcomes: list[Any] = []

    def ask() -> None:
        while not over.is_set():
            try:
                outcomes.append(generate(served.cluster, decoder, ids)["output_ids"])
            except RefusedError as error:
                outcomes.append(error.status)
            except OSError as error:  # the client's own time limit: a hang
                outcomes.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield outcomes
    finally:
        over.set()
        thread.join()


def test_another_in_a_decode_workers_place(
    served: Served, guests: Guests, prompts: Prompts
) -> None:
    """Decoder `c` has the weights of `b`; what comes in its place would answer otherwise."""
    base, decoders = served.models.base, served.models.decoders
    prefill, decode = served.cluster.plan.workers
    events = events_config()
    c: dict[str, Any] = {"model_path": decoders["b"], "served_model_name": "c", **events}
    (ids,) = prompts(1, 40)
    right = expected(base, decoders["b"], ids).tokens
    assert right != expected(base, decoders["a"], ids).tokens
    guests.start(decode, **c)
    post(f"{served.cluster.url}/workers", {"url": guests.url})
    assert generate(served.cluster, "c", ids)["output_ids"] == right
    others: list[tuple[str, WorkerSpec, dict[str, Any]]] = [
        ("model: wanted c, found a", decode, {"model_path": decoders["a"], **events}),
        ("weights: wanted", decode, {**c, "model_path": decoders["a"]}),
        ("base fingerprint: wanted", decode, {**c, "fingerprint": f"ps1:{'0' * 64}"}),
        (
            "role: wanted decode, found prefill",
            prefill,
            {"served_model_name": "c", "disaggregation_bootstrap_port": free_port(), **events},
        ),
    ]
    for reason, like, changed in others:
        with asked_all_the_time(served, "c", ids) as outcomes:
            guests.start(like, **changed)
            assert reason in becomes(served, guests.url, "refused")["problem"]
            answered = len(outcomes)
            while len(outcomes) < answered + 3:
                time.sleep(0.01)  # the next requests end, or the test does
        assert [one for one in outcomes if one not in (right, 502, 503)] == []
        assert outcomes[-1] == 503
    with asked_all_the_time(served, "c", ids) as outcomes:
        guests.start(decode, **c)
        becomes(served, guests.url, "good")
    assert [one for one in outcomes if one not in (right, 502, 503)] == []
    assert generate(served.cluster, "c", ids)["output_ids"] == right
    while (state := becomes(served, guests.url, "good"))["cache"]["known_by"] != "events":
        time.sleep(0.05)
    assert 0 < state["cache"]["tokens"] < 40
    assert_exact(served, prompts)
    assert_conserved(served.cluster)


def test_another_in_a_prefill_workers_place(
    served: Served, guests: Guests, prompts: Prompts
) -> None:
    prefill = served.cluster.plan.workers[0]
    guest_flags: dict[str, Any] = {**events_config(), "disaggregation_bootstrap_port": free_port()}
    guests.start(prefill, **guest_flags)
    post(f"{served.cluster.url}/workers", {"url": guests.url})
    assert_exact(served, prompts)
    for changed, reason in (
        ({"disaggregation_bootstrap_port": free_port()}, "bootstrap port: wanted"),
        ({"model_path": served.models.decoders["b"]}, "weights: wanted"),
    ):
        (ids,) = prompts(1, 40)
        right = expected(served.models.base, served.models.decoders["a"], ids).tokens
        with asked_all_the_time(served, "a", ids) as outcomes:
            guests.start(prefill, **{**guest_flags, **changed})
            assert reason in becomes(served, guests.url, "refused")["problem"]
        assert [one for one in outcomes if one not in (right, 502, 503)] == []
        assert_exact(served, prompts)
    assert_conserved(served.cluster)


def test_one_worker_under_two_addresses(served: Served) -> None:
    for worker in served.cluster.workers:
        port = worker.url.rpartition(":")[2]
        with pytest.raises(RefusedError, match=f"409.*already: '{worker.name}'"):
            post(f"{served.cluster.url}/workers", {"url": f"http://localhost:{port}"})


DEEP = b"\x91" * 200_000 + b"\xc0"
NESTED = b"\x82\xa4type\xa6Status\xa1x" + DEEP  # a question, with a field that nobody knows
LETTER = b"\x82\xa4type\xa5Alive\xa1x" + DEEP[-60_000:]
GARBAGE = (
    b"", b"\x00" * 5, b"\xff\xfe\xfd", os.urandom(300), NESTED, b"[" * 200_000,
    TAG + xxhash.xxh3_64_digest(LETTER) + LETTER, TAG + b"x" * 40,
)  # fmt: skip


def pids(served: Served) -> list[int]:
    """All processes of all workers."""
    leaders = [psutil.Process(worker.pid) for worker in served.cluster.workers]
    return [one.pid for leader in leaders for one in (leader, *leader.children(True))]


def http_ports(served: Served) -> set[int]:
    """Those of the workers' servers, and of the bootstrap servers."""
    workers = served.cluster.plan.workers
    return {port for one in workers for port in (one.port, one.bootstrap_port) if port}


def zmq_ports(served: Served) -> set[int]:
    """Those of events, of requests for them, and of handoffs."""
    others = set(listening_ports(pids(served))) - http_ports(served)
    return speaking_zmtp(others, 3 * len(served.cluster.workers))


def test_a_stranger_reaches_nothing(served: Served) -> None:
    """Each port on which a worker listens: who has not the cluster's key is told to go."""
    ports = listening_ports(pids(served))
    speak_http, guarded, key = http_ports(served), zmq_ports(served), served.cluster.key
    events = {
        int(address.rpartition(":")[2]): kind
        for one in served.cluster.plan.workers
        for address, kind in ((one.events.publishes, zmq.SUB), (one.events.control, zmq.DEALER))
    }
    assert set(events) < guarded, "the others are for handoffs"
    # All else is between the ranks of a worker, on this machine alone.
    assert {ports[port] for port in set(ports) - speak_http - guarded} <= {"127.0.0.1", "::1"}
    for port in speak_http | guarded:
        for kind in (zmq.PUSH, zmq.DEALER, zmq.SUB):
            for wrong in (None, ClusterKey.make()):
                assert not gets_through(port, kind, wrong), port
        for method, path in (
            ("GET", "/route?prefill_dp_rank=-1&prefill_cp_rank=-1&target_tp_rank=-1"
                    "&target_pp_rank=-1"),
            ("PUT", "/route"), ("POST", "/register_dp_rank"), ("POST", "/query_dp_ranks"),
            ("GET", "/health"), ("GET", "/server_info"), ("POST", "/generate"), ("GET", "/"),
        ):  # fmt: skip
            status = http_status(port, method, path)
            assert status == (401 if port in speak_http else None), (port, method, path)
    handoffs = dict.fromkeys(guarded - set(events), zmq.PUSH)
    for port, kind in (events | handoffs).items():
        assert gets_through(port, kind, key), port
    for worker in served.cluster.workers:
        for name in ("http", "transfer", "events", "control"):
            told = {"socket": name, "reason": "unauthenticated"}
            while metric(worker.url, "refused", **told) < 6:
                pass  # a socket's thread looks twice a second
    told = {"socket": "bootstrap", "reason": "unauthenticated"}
    assert metric(served.cluster.workers[0].url, "refused", **told) >= 8


def test_garbage_on_every_socket(served: Served, prompts: Prompts) -> None:
    """Each port of ours and SGLang's, and each mailbox, with and without the key."""
    assert_exact(served, prompts)
    speak_http, key = http_ports(served), served.cluster.key
    guarded = zmq_ports(served)
    files = {pid: psutil.Process(pid).num_fds() for pid in pids(served)}
    memory = sum(psutil.Process(pid).memory_info().rss for pid in pids(served))
    messages = [[content] * (1 + len(content) % 3) for content in GARBAGE]
    times = -(-FRAMES // len(messages))
    for port in speak_http | guarded:
        knock(port)
        for kind in (zmq.PUSH, zmq.DEALER, zmq.REQ, zmq.XSUB) if port in guarded else ():
            send(port, kind, messages, None)
            send(port, kind, messages * times, key)
    names = {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()}
    boxes = [f"\0{name[1:]}" for name in names if name.startswith("@ps_sglang-")]
    assert len(boxes) >= len(served.cluster.workers)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as letter:
        for box in boxes:
            for content in GARBAGE * times:
                with suppress(OSError):
                    letter.sendto(content[: 1 << 16], box)
            letter.sendto(TAG + xxhash.xxh3_64_digest(LETTER) + LETTER, box)
    assert_exact(served, prompts)
    assert all(worker.alive for worker in served.cluster.workers)
    for worker in workers(served):
        while worker["cache"]["known_by"] != "events":
            worker = next(one for one in workers(served) if one["name"] == worker["name"])
    assert_conserved(served.cluster)
    for guard in served.cluster.workers:
        for name in ("transfer", "control", "mailbox"):
            told = {"socket": name, "reason": "malformed"}
            assert metric(guard.url, "refused", **told) > 0, name
    now = {pid: psutil.Process(pid).num_fds() for pid in files}
    assert {pid: now[pid] - files[pid] for pid in files if now[pid] > files[pid] + 8} == {}
    assert sum(psutil.Process(pid).memory_info().rss for pid in files) - memory < 256 << 20


def assert_exact(served: Served, prompts: Prompts) -> None:
    """Requests of decoder `a`, several at once, compared with the reference."""
    inputs = prompts(4, 40)
    base, weights = served.models.base, served.models.decoders["a"]
    want = [expected(base, weights, ids).tokens for ids in inputs]
    answers = together([partial(generate, served.cluster, "a", ids) for ids in inputs])
    assert [answer["output_ids"] for answer in answers] == want
