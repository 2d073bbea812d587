"""A system that runs: where its decoders are asked, and what its workers tell of themselves."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from benchmarks.worker_keys import let_in
from ps_sglang.errors import LaunchError
from ps_sglang.launch import Cluster, ClusterSpec, procfs
from ps_sglang.launch.processes import GATEWAY

_FLUSH_S: Final = 30.0
_ASK_S: Final = 30.0


@dataclass(frozen=True)
class Endpoint:
    """Where a decoder generates; `adapter` is what a server of several knows it by."""

    url: str
    adapter: str | None = None


@dataclass(frozen=True)
class Process:
    """A worker (it has a `url`) or what else belongs to a system, by the leader of its session.

    `role`: prefill, decode, null (both in one worker of ours), unified (a stock server), gateway,
    router, fork-server.
    """

    role: str
    pid: int
    url: str | None = None


@dataclass(frozen=True)
class Running:
    """A system that answers: where each decoder generates, and all that costs time and memory."""

    endpoints: tuple[Endpoint, ...]
    processes: tuple[Process, ...]

    @property
    def workers(self) -> tuple[str, ...]:
        """Addresses of all workers."""
        return tuple(process.url for process in self.processes if process.url is not None)


@contextmanager
def running_cluster(spec: ClusterSpec, decoders: Iterable[str]) -> Iterator[Running]:
    """The launcher's cluster, its `decoders` asked through the gateway."""
    with Cluster.start(spec) as cluster:
        let_in(cluster)
        workers = [Process(worker.role.value, worker.pid, worker.url) for worker in cluster.workers]
        yield Running(
            tuple(Endpoint(f"{cluster.url}/models/{name}/generate") for name in decoders),
            (
                *workers,
                Process("gateway", cluster._link.pids[GATEWAY]),
                Process("fork-server", cluster._link.pid),
            ),
        )


def memory_bytes(running: Running) -> int:
    """Memory of all processes now, shared pages counted once (sum of PSS)."""
    pids = [pid for process in running.processes for pid in procfs.session_members(process.pid)]
    return sum(map(procfs.proportional_bytes, pids))


def flush(running: Running) -> None:
    """Empty every worker's cache.

    Raises LaunchError if a worker still has requests after a while.
    """
    limit = time.monotonic() + _FLUSH_S
    for url in running.workers:
        while not _flushed(url):
            if time.monotonic() > limit:
                raise LaunchError(f"{url} would not empty its cache: it still has requests")
            time.sleep(0.1)  # between polls of a worker that ends what it still has


def _flushed(url: str) -> bool:
    try:
        ask_worker(f"{url}/flush_cache", b"")
    except urllib.error.HTTPError:
        return False
    return True


def ask_worker(url: str, body: bytes | None = None) -> str:
    """What a worker answers.

    Raises LaunchError if it is not there any more, and urllib's HTTPError for a status but 200.
    """
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=_ASK_S) as response:
            text: str = response.read().decode()
    except urllib.error.HTTPError:
        raise
    except OSError as error:
        raise LaunchError(f"a worker has gone: {url}: {error}") from error
    return text
