"""Two hosts: network namespaces, each with a boot id, in which `ps-sglang` runs as a user runs it.

Pages cross the network, over TCP. The link between the two is cut while they do, and is mended.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.gateway.access import key_file
from ps_sglang.gateway.access.limits import UNLIMITED
from ps_sglang.gateway.access.principal import KeyRole, Principal
from ps_sglang.gateway_http import KEY_VARIABLE
from tests.engine.served import Models
from tests.support.engine_client import scraped
from tests.support.hf_reference import expected
from tests.support.strangers import http_status

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(500),
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None,
        reason="network namespaces need root and iproute2",
    ),
]

BRIDGE = "10.213.7.1"
PREFILL, DECODE = "10.213.7.2", "10.213.7.3"
NAMES = {PREFILL: "ps-prefill", DECODE: "ps-decode"}
LINK = "ps-decode0"
"""The bridge's end of the cable to the decode worker's host."""
GATEWAY = f"http://{PREFILL}:8000"
DEADLINE_S = 60.0
"""In which a request whose worker cannot be reached any more has ended."""
SECRET = "psk-an-admin-of-two-hosts"

Prompts = Callable[[int, int], list[list[int]]]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """A bridge `ps0` with two hosts on it."""
    ip("link", "add", "ps0", "type", "bridge")
    try:
        ip("addr", "add", f"{BRIDGE}/24", "dev", "ps0")
        ip("link", "set", "ps0", "up")
        for address, name in NAMES.items():
            ip("netns", "add", name)
            ip("link", "add", f"{name}0", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"{name}0", "master", "ps0", "up")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in NAMES.values():
            subprocess.run(["ip", "netns", "delete", name], check=False)
        ip("link", "delete", "ps0")


@dataclass(frozen=True)
class Hosts:
    """A cluster on two hosts: the key of its workers, and their models."""

    key: ClusterKey
    models: Models

    def ask(self, ids: list[int], tokens: int = 16, **options: Any) -> Any:
        """An open answer of decoder `a`."""
        sampling = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
        body = {"input_ids": ids, "sampling_params": sampling, **options}
        request = urllib.request.Request(
            f"{GATEWAY}/models/a/generate",
            json.dumps(body).encode(),
            {"content-type": "application/json", "authorization": f"Bearer {SECRET}"},
        )
        return urllib.request.urlopen(request, timeout=2 * DEADLINE_S)

    def generate(self, ids: list[int]) -> list[int]:
        with self.ask(ids) as answer:
            tokens: list[int] = json.load(answer)["output_ids"]
        return tokens

    def expected(self, ids: list[int]) -> list[int]:
        tokens: list[int] = expected(self.models.base, self.models.decoders["a"], ids).tokens
        return tokens

    def workers(self) -> dict[str, Any]:
        """What the gateway says of each, by role."""
        request = urllib.request.Request(
            f"{GATEWAY}/workers", headers={"authorization": f"Bearer {SECRET}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return {one["role"]: one for one in json.load(answer)["workers"]}

    def transferred(self, path: str) -> float:
        """Bytes that came to the decode worker by this path."""
        url = self.workers()["decode"]["url"]
        headers = {"authorization": self.key.authorization}
        request = urllib.request.Request(f"{url}/metrics", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return scraped(answer.read().decode(), "transfer_bytes", path=path)


@pytest.fixture(scope="module")
def hosts(
    network: None, llama: Models, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hosts]:
    folder = tmp_path_factory.mktemp("hosts")
    key, secret = ClusterKey.make(), folder / "cluster.key"
    key.save(secret)
    who = Principal("ops", KeyRole.ADMIN, "ops", UNLIMITED)
    key_file.add(folder / "keys.txt", key_file.KeyEntry(who, key_file.digest_of(SECRET)))
    base = f"base={llama.base}"
    spec = folder / "gateway.yaml"
    spec.write_text(
        f"prefill: {base}\ngateway_only: true\nhost: {PREFILL}\nport: 8000\n"
        f"api_keys: {folder}/keys.txt\ncluster_key_file: {secret}\nlog_dir: {folder}/gateway\n"
    )

    def on(host: str, ready: str, *words: str) -> Any:
        return running(host, folder / f"{words[0]}-{host}.log", ready, *words)

    def worker(host: str, role: str, *models: str) -> Any:
        return on(
            host, " joined ", "worker", "--role", role, "--base", base, *models,
            "--gateway", GATEWAY, "--cluster-key-file", str(secret),
            "--log-dir", str(folder / role), "--device", "cpu",
        )  # fmt: skip

    with ExitStack() as stack:
        wait = stack.enter_context(on(PREFILL, " ready ", "launch", "--spec", str(spec)))
        wait()
        waits = [
            stack.enter_context(worker(PREFILL, "prefill")),
            stack.enter_context(worker(DECODE, "decode", "--model", f"a={llama.decoders['a']}")),
        ]
        for wait in waits:
            wait()
        yield Hosts(key, llama)


@contextmanager
def running(host: str, log: Path, ready: str, *words: str) -> Iterator[Callable[[], None]]:
    """Run `ps-sglang` on a host; the function returns once it has said that it is `ready`."""
    boot_id = log.with_suffix(".boot-id")
    boot_id.write_text(f"{uuid.uuid4()}\n")
    command = [
        "ip", "netns", "exec", NAMES[host],
        # A mount namespace of its own comes with the network's.
        "sh", "-c", 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"', str(boot_id),
        sys.executable, "-m", "ps_sglang.cli", *words,
    ]  # fmt: skip
    environ = {**os.environ, KEY_VARIABLE: SECRET}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stderr=output, env=environ)

    def wait() -> None:
        limit = time.monotonic() + 240
        while ready not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < limit, log.read_text()
            time.sleep(0.1)  # between looks at a file that no one else tells of

    try:
        yield wait
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def sent_over_the_link() -> int:
    """Bytes that have gone to the decode worker's host."""
    return int(Path(f"/sys/class/net/{LINK}/statistics/tx_bytes").read_text())


@contextmanager
def narrow_link(bytes_per_second: int) -> Iterator[None]:
    """What goes to the decode worker's host is slow."""
    rate = ("rate", f"{bytes_per_second * 8}bit", "burst", "16kb", "latency", "30s")
    subprocess.run(["tc", "qdisc", "add", "dev", LINK, "root", "tbf", *rate], check=True)
    try:
        yield
    finally:
        subprocess.run(["tc", "qdisc", "del", "dev", LINK, "root"], check=True)


@contextmanager
def cut_link() -> Iterator[None]:
    """Nothing gets through between the hosts."""
    ip("link", "set", LINK, "down")
    try:
        yield
    finally:
        ip("link", "set", LINK, "up")


def test_pages_cross_the_network(hosts: Hosts, prompts: Prompts) -> None:
    for ids in prompts(2, 300):
        assert hosts.generate(ids) == hosts.expected(ids)
    assert hosts.transferred("tcp") > 0
    assert hosts.transferred("shm") == 0


def test_a_neighbour_without_the_key_is_refused(hosts: Hosts) -> None:
    for worker in hosts.workers().values():
        host, _, port = worker["url"].removeprefix("http://").rpartition(":")
        for method, path in (("GET", "/server_info"), ("POST", "/generate")):
            assert http_status(int(port), method, path, host) == 401


def test_a_link_that_is_cut_for_a_moment(hosts: Hosts, prompts: Prompts) -> None:
    """Nothing is lost: what was on its way comes later."""
    (ids,) = prompts(1, 1500)
    size = _page_bytes(hosts, prompts) * len(ids)
    with ThreadPoolExecutor(1) as pool, narrow_link(int(size / 3)):
        before = sent_over_the_link()
        answer = pool.submit(hosts.generate, ids)
        _wait_for_traffic(before + size / 5, answer)
        with cut_link():
            while hosts.workers()["decode"]["lease_seconds"] > 12:  # of 15
                time.sleep(0.05)  # between looks
        assert answer.result(2 * DEADLINE_S) == hosts.expected(ids)


def test_a_link_that_stays_cut(hosts: Hosts, prompts: Prompts) -> None:
    """A stream and a transfer over it end with an error in time, and all is well once it is up."""
    (ids, *after) = prompts(3, 1500)
    short = prompts(1, 40)[0]
    size = _page_bytes(hosts, prompts) * len(ids)
    with ThreadPoolExecutor(2) as pool, hosts.ask(short, 1900, stream=True) as stream:
        assert stream.readline().startswith(b"data: ")
        with narrow_link(int(size / 3)):
            before = sent_over_the_link()
            transfer = pool.submit(hosts.generate, ids)
            _wait_for_traffic(before + size / 5, transfer)
            with cut_link():
                cut_at = time.monotonic()
                rest = pool.submit(stream.read)
                with pytest.raises(urllib.error.HTTPError) as refused:
                    transfer.result(DEADLINE_S)
                assert refused.value.code in (502, 503, 504)
                events = rest.result(DEADLINE_S).decode().split("\n\n")
                assert time.monotonic() - cut_at < DEADLINE_S
                assert any('"error"' in event for event in events), events[-3:]
    for ids in after:
        assert _answered(hosts, ids) == hosts.expected(ids)
    assert {one["state"] for one in hosts.workers().values()} <= {"good", "trial"}


def _page_bytes(hosts: Hosts, prompts: Prompts) -> float:
    """Bytes of KV of a token, as a transfer of some shows them."""
    before = hosts.transferred("tcp")
    (ids,) = prompts(1, 101)
    hosts.generate(ids)
    return (hosts.transferred("tcp") - before) / 100


def _wait_for_traffic(count: float, answer: Any) -> None:
    while sent_over_the_link() < count:
        assert not answer.done(), "it is over before the link is cut"
        time.sleep(0.01)  # between readings of the kernel's counter


def _answered(hosts: Hosts, ids: list[int]) -> list[int]:
    """An answer, once the workers have found each other again."""
    limit = time.monotonic() + DEADLINE_S
    while True:
        try:
            return hosts.generate(ids)
        except urllib.error.HTTPError as error:
            if error.code not in (502, 503) or time.monotonic() > limit:
                raise
            time.sleep(0.2)  # between tries, as a client's
