"""A cluster on two hosts, with one prefill worker and one worker of a decoder on each.

Those of the other host are started as on any machine, each by `ps-sglang worker`. Pages go to them
and come from them over TCP.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from benchmarks.faults.models import Served
from benchmarks.faults.network import HERE, there
from benchmarks.faults.system import READY_S, RESTARTS, System, decode_pool
from ps_sglang.errors import LaunchError
from ps_sglang.gateway.access import key_file
from ps_sglang.gateway.access.limits import UNLIMITED
from ps_sglang.gateway.access.principal import KeyRole, Principal
from ps_sglang.launch import procfs
from ps_sglang.launch.readiness import tail

_JOINED: Final = "ps-sglang: joined "
_POLL_S: Final = 0.1


class TwoHosts(System):
    """As System, on this machine and on that of `network.second_host`, which must be there."""

    def __init__(self, what: Served, folder: Path, logs: Path) -> None:
        keys, api_key = folder / "keys.txt", key_file.new_secret()
        admin = Principal("suite", KeyRole.ADMIN, "suite", UNLIMITED)
        key_file.add(keys, key_file.KeyEntry(admin, key_file.digest_of(api_key)))
        options = ("--advertise", HERE, "--api-keys", str(keys))
        super().__init__(
            what, folder, logs, host=HERE, replicas=1, api_key=api_key, options=options
        )
        self._folder = folder
        self._there: list[subprocess.Popen[bytes]] = []

    async def start(self) -> float:
        began = time.monotonic()
        await super().start()
        prefill = ("--role", "prefill", "--max-total-tokens", str(self.what.pool))
        decode = ("--role", "decode", "--model", self.what.elsewhere, *decode_pool(self.what))
        logs = [self._run_there(words) for words in (prefill, decode)]
        for log, worker in zip(logs, self._there, strict=True):
            while _JOINED not in log.read_text():
                if worker.poll() is not None or time.monotonic() > began + READY_S:
                    raise LaunchError(f"a worker of the other host did not start:\n{tail(log)}")
                await asyncio.sleep(_POLL_S)
        return time.monotonic() - began

    async def stop(self) -> None:
        for worker in self._there:
            worker.terminate()
        await super().stop()

    def pids(self) -> list[int]:
        there = [pid for one in self._there for pid in (one.pid, *procfs.descendants(one.pid))]
        return [*super().pids(), *there]

    def _run_there(self, words: tuple[str, ...]) -> Path:
        """Start a worker; returns its log."""
        name = f"there-{len(self._there)}"
        command = (
            *(sys.executable, "-m", "ps_sglang.cli", "worker", *words),
            *("--base", self.what.prefill, "--gateway", self.url),
            *("--cluster-key-file", str(self.key_file), "--log-dir", str(self._folder / name)),
            *("--max-restarts", str(RESTARTS)),
        )
        log = self._folder / f"{name}.log"
        with log.open("wb") as output:
            self._there.append(self.run(there(command, self._folder), output))
        return log
