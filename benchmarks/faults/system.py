"""The cluster under test: the real launcher in a process of its own, and what runs below it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import aiohttp
import psutil

from benchmarks.faults.client import authorization
from benchmarks.faults.models import Served, Turn
from benchmarks.faults.resources import Resources, measure
from ps_sglang.cluster_key import ClusterKey
from ps_sglang.errors import LaunchError
from ps_sglang.gateway.bodies.samples import client_rid
from ps_sglang.gateway_http import KEY_VARIABLE
from ps_sglang.launch import procfs
from ps_sglang.launch.forked_process import die_with_parent
from ps_sglang.launch.ports import free_ports
from ps_sglang.launch.readiness import tail
from ps_sglang.launch.spec import LOOPBACK

QUEUED: Final = 64
AT_ONCE: Final = 256
REQUEST_S: Final = 120
"""The gateway's limits, as whoever runs one would set them for so small a machine."""
_FORGOTTEN_S: Final = 3.0
READY_S: Final = 300.0
RESTARTS: Final = 1000
_GONE_S: Final = 30.0
_ASK_S: Final = 10.0
_POLL_S: Final = 0.1
_READY: Final = "ps-sglang: ready "


class System:
    """Two prefill workers, the decode workers of `what`, and a gateway at `url`.

    The launcher listens at `host`, with these `options`, and takes an admin's `api_key`. With
    `replicas` of 1 it has one worker of each kind only.
    """

    def __init__(
        self,
        what: Served,
        folder: Path,
        logs: Path,
        *,
        host: str = LOOPBACK,
        replicas: int = 2,
        api_key: str | None = None,
        options: Sequence[str] = (),
    ) -> None:
        (port,) = free_ports(1)
        self.url = f"http://{host}:{port}"
        self.api_key = api_key
        self.what = what
        self.logs = logs
        self.temporary = folder / "t"  # sockets lie below, whose paths must be short
        self.temporary.mkdir()
        self.key_file = folder / "cluster.key"
        self._key = ClusterKey.make()
        self._key.save(self.key_file)
        self._log = folder / "launcher.log"
        self._log.touch()
        decoders = what.decoders
        if replicas == 1:
            decoders = tuple(one.partition("*")[0] for one in decoders)
        elif not any("*" in one for one in decoders):
            options = ("--decode-replicas", str(replicas), *options)
        self._arguments = (
            *("--prefill", what.prefill, "--decoders", ",".join(decoders), "--host", host),
            *("--prefill-replicas", str(replicas), "--port", str(port), "--log-dir", str(logs)),
            *("--cluster-key-file", str(self.key_file), "--max-restarts", str(RESTARTS)),
            *("--max-queued-requests", str(QUEUED), "--max-concurrent-requests", str(AT_ONCE)),
            *("--request-timeout", str(REQUEST_S), "--max-total-tokens", str(what.pool)),
            *("--decode-engine-args", " ".join(decode_pool(what))),
            *options,
        )
        self._process: subprocess.Popen[bytes]
        self._http: aiohttp.ClientSession
        self._members: frozenset[str] = frozenset()

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True),
            timeout=aiohttp.ClientTimeout(total=_ASK_S),
            headers=authorization(self.api_key),
        )
        try:
            await self.start()
            self._members = frozenset(await self.workers())
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> float:
        """Start the launcher; returns in how many seconds its cluster was ready.

        Raises LaunchError.
        """
        began, written = time.monotonic(), self._log.stat().st_size
        command = [sys.executable, "-m", "benchmarks.faults.launcher", str(_FORGOTTEN_S)]
        with self._log.open("ab") as log:
            self._process = self.run([*command, *self._arguments], log)
        while not any(one.startswith(_READY) for one in self._lines(written)):
            if self._process.poll() is not None or time.monotonic() > began + READY_S:
                raise LaunchError(f"the cluster did not start:\n{tail(self._log)}")
            await asyncio.sleep(_POLL_S)
        return time.monotonic() - began

    def run(self, command: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a part of the cluster, which ends with this process."""
        key = {} if self.api_key is None else {KEY_VARIABLE: self.api_key}
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {"TMPDIR": str(self.temporary)} | key,
            preexec_fn=partial(die_with_parent, os.getpid()),
        )

    async def stop(self) -> None:
        """As Ctrl-C does; raises LaunchError if something stays behind."""
        pids = self.pids()
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)
        await self.ended(pids)
        await self._http.close()

    async def ended(self, pids: list[int]) -> float:
        """Wait for the end of the launcher and of `pids`, which were below it.

        Returns in how many seconds they were gone. Raises LaunchError if some stay.
        """
        began = time.monotonic()
        while self._process.poll() is None or any(map(_lives, pids)):
            if time.monotonic() > began + _GONE_S:
                left = [pid for pid in pids if _lives(pid)]
                for pid in (self._process.pid, *left):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self._process.wait()
                raise LaunchError(f"{len(left)} processes outlive their cluster: {left}")
            await asyncio.sleep(_POLL_S)
        return time.monotonic() - began

    @property
    def launcher(self) -> int:
        """Process id of the launcher."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """The launcher's, None while it runs."""
        return self._process.poll()

    @property
    def fork_server(self) -> int:
        """Process id of the parent of all workers, and of the gateway."""
        (child,) = psutil.Process(self.launcher).children()
        return int(child.pid)

    def pids(self) -> list[int]:
        """The launcher and all below it."""
        return [self.launcher, *procfs.descendants(self.launcher)]

    def leaders(self) -> dict[str, int]:
        """The first process of each worker and of the gateway, by name: each has its own log."""
        found = {}
        with suppress(psutil.NoSuchProcess, ValueError):
            for child in psutil.Process(self.fork_server).children():
                with suppress(OSError):
                    log = Path(os.readlink(f"/proc/{child.pid}/fd/1"))
                    found[log.stem] = int(child.pid)
        return found

    def resources(self) -> Resources:
        """What all its processes hold now."""
        return measure(self.pids(), self.temporary)

    def ports(self) -> list[int]:
        """Every TCP port on which one of its processes listens."""
        found = set()
        for pid in self.pids():
            with suppress(psutil.Error):
                connections = psutil.Process(pid).net_connections("tcp")
                found |= {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}
        return sorted(found)

    async def workers(self) -> dict[str, dict[str, Any]]:
        """The gateway's workers by name, none while it does not answer."""
        try:
            async with self._http.get(f"{self.url}/workers") as response:
                return {one["name"]: one for one in (await response.json())["workers"]}
        except (aiohttp.ClientError, TimeoutError, OSError, KeyError):
            return {}

    async def begun_streams(self, worker: str) -> frozenset[str]:
        """The ids of the streams of which a decode worker has sent something, and not all.

        Of more than 64 requests at the gateway the oldest ones; none while it does not answer.
        """
        try:
            async with self._http.get(f"{self.url}/v1/live") as response:
                requests = (await response.json())["requests"]
        except (aiohttp.ClientError, TimeoutError, OSError, KeyError):
            return frozenset()
        return frozenset(
            client_rid(one["id"])
            for one in requests
            if one["decode_worker"] == worker and one["produced"]
        )

    async def to_compute(self, turn: Turn) -> float | None:
        """The tokens of a prompt that would have to be computed where it would go now.

        None while no gateway says so.
        """
        url = f"{self.url}/models/{turn.decoder}/debug/route"
        try:
            async with self._http.post(url, json={"input_ids": list(turn.prompt)}) as response:
                (decision,) = (await response.json())["decisions"]
                return float(decision["candidates"][0]["terms"]["new"])  # the cheapest pair
        except (aiohttp.ClientError, TimeoutError, OSError, KeyError):
            return None

    async def is_whole(self, replaced: Mapping[str, int]) -> bool:
        """Whether all workers are good, and others run in place of the `replaced` processes."""
        leaders = self.leaders()
        if any(leaders.get(name) in (None, pid) for name, pid in replaced.items()):
            return False
        workers = await self.workers()
        return workers.keys() == self._members and all(
            one["state"] == "good" for one in workers.values()
        )

    async def in_work(self) -> dict[str, Any]:
        """What is not at rest: queues, requests and pages of all workers (invariant I6)."""
        busy: dict[str, Any] = {}
        for name, worker in (await self.workers()).items():
            if worker["load"]["requests"]:
                busy[f"{name} at the gateway"] = worker["load"]["requests"]
            load = await self._load(worker["url"])
            queues = {k: v for k, v in load["disaggregation"].items() if k.endswith("_reqs")}
            counts = ("num_running_reqs", "num_waiting_reqs", "num_used_tokens")
            busy |= {
                f"{name} {key}": value
                for key, value in (queues | {key: load[key] for key in counts}).items()
                if value
            }
        return busy

    async def _load(self, url: str) -> dict[str, Any]:
        headers = {"Authorization": self._key.authorization}
        async with self._http.get(f"{url}/v1/loads?include=all", headers=headers) as response:
            loads: list[dict[str, Any]] = (await response.json())["loads"]
        return loads[0]

    def _lines(self, start: int) -> list[str]:
        with self._log.open("rb") as log:
            log.seek(start)
            return log.read().decode(errors="replace").splitlines()


def decode_pool(what: Served) -> tuple[str, ...]:
    """A decode worker's flags: its pool is so small that the answers of `Retraction` outgrow it."""
    return ("--max-total-tokens", str(what.pool // 2), "--num-reserved-decode-tokens", "8")


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
