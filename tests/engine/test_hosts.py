"""Two hosts (network namespaces, each with a boot id): pages cross the network, over TCP.

A wrong base is refused by name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ps_sglang.contract import base_fingerprint
from ps_sglang.engine.settings import BASE_FINGERPRINT
from tests.engine.plain_server import sglang_server, wait_until_healthy
from tests.engine.served import Models
from tests.support.engine_client import RefusedError, metric, post
from tests.support.hf_reference import expected

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None,
        reason="network namespaces need root and iproute2",
    ),
]

BRIDGE = "10.213.7.1"
PREFILL, DECODE = "10.213.7.2", "10.213.7.3"
BOOTSTRAP_PORT = 8998


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """A bridge `ps0` with two hosts on it, `ps-prefill` and `ps-decode`."""
    names = {"ps-prefill": PREFILL, "ps-decode": DECODE}
    ip("link", "add", "ps0", "type", "bridge")
    try:
        ip("addr", "add", f"{BRIDGE}/24", "dev", "ps0")
        ip("link", "set", "ps0", "up")
        for name, address in names.items():
            ip("netns", "add", name)
            ip("link", "add", f"{name}0", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"{name}0", "master", "ps0", "up")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)
        ip("link", "delete", "ps0")


@dataclass(frozen=True)
class Workers:
    """URLs of the workers on the two hosts."""

    prefill: str
    decode: str
    misled: str  # expects the KV of another base


@pytest.fixture(scope="module")
def workers(
    network: None, llama: Models, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Workers]:
    logs = tmp_path_factory.mktemp("hosts")
    fingerprint = base_fingerprint(llama.base)
    common = ("--disaggregation-transfer-backend", "zmq", "--radix-cache-backend", "base-token")
    decode = (
        *common, "--disaggregation-mode", "decode", "--disaggregation-decode-enable-radix-cache",
        "--disaggregation-decode-retraction-backup", "cpu_tensor",
    )  # fmt: skip
    prefill = (
        *common, "--disaggregation-mode", "prefill",
        "--disaggregation-bootstrap-port", str(BOOTSTRAP_PORT),
    )  # fmt: skip

    def on(name: str, host: str, model: Path, flags: tuple[str, ...], base: str) -> Any:
        boot_id = logs / f"boot-id-{host}"
        boot_id.write_text(f"{uuid.uuid4()}\n")
        return sglang_server(
            model, logs / f"{name}.log", *flags, host=host,
            env={**os.environ, BASE_FINGERPRINT: base},
            prefix=(
                "ip", "netns", "exec", "ps-prefill" if host == PREFILL else "ps-decode",
                # A mount namespace of its own comes with the network's.
                "sh", "-c", 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"',
                str(boot_id),
            ),
        )  # fmt: skip

    with ExitStack() as running:
        started = Workers(
            running.enter_context(on("prefill", PREFILL, llama.base, prefill, fingerprint)),
            running.enter_context(on("a", DECODE, llama.decoders["a"], decode, fingerprint)),
            running.enter_context(on("misled", DECODE, llama.decoders["a"], decode, "ps1:other")),
        )
        for url in (started.prefill, started.decode, started.misled):
            wait_until_healthy(url)
        yield started


def both_legs(workers: Workers, decode: str, ids: list[int], room: int) -> Any:
    """The decode leg's answer, with the prefill leg sent as the gateway would."""
    body = {
        "input_ids": ids,
        "sampling_params": {"max_new_tokens": 16, "temperature": 0},
        "bootstrap_host": PREFILL,
        "bootstrap_port": BOOTSTRAP_PORT,
        "bootstrap_room": room,
    }
    with ThreadPoolExecutor(2) as pool:
        prefill = pool.submit(post, f"{workers.prefill}/generate", body)
        try:
            return pool.submit(post, f"{decode}/generate", body).result()
        finally:
            prefill.exception()


def test_pages_cross_the_network(
    workers: Workers, llama: Models, prompts: Callable[[int, int], list[list[int]]]
) -> None:
    (ids,) = prompts(1, 300)
    want = expected(llama.base, llama.decoders["a"], ids)
    for room in (1, 2):
        assert both_legs(workers, workers.decode, ids, room)["output_ids"] == want.tokens
    assert metric(workers.decode, "transfer_bytes", path="tcp") > 0
    assert metric(workers.decode, "transfer_bytes", path="shm") == 0


def test_another_base_is_refused_by_name(
    workers: Workers, llama: Models, prompts: Callable[[int, int], list[list[int]]]
) -> None:
    """Invariant I5 at connect time: SGLang itself compares page size and KV dtype only."""
    (ids,) = prompts(1, 40)
    with pytest.raises(RefusedError, match=r"expects KV of base ps1:other.*serves base"):
        both_legs(workers, workers.misled, ids, 3)
    want = expected(llama.base, llama.decoders["a"], ids)
    assert both_legs(workers, workers.decode, ids, 4)["output_ids"] == want.tokens
