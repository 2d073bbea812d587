"""Starts and stops what is compared: engines, our gateway, `sglang-router`."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.gateway.messages import EngineConfig, Totals
from benchmarks.plain import wait_until_ok
from ps_sglang.errors import LaunchError, MissingPackageError
from ps_sglang.gateway.config import DecodeWorker, GatewayConfig, PrefillWorker
from ps_sglang.launch.forked_process import die_with_parent
from ps_sglang.launch.ports import free_ports

_START_S: Final = 60.0
_STOP_S: Final = 10.0
CONTEXT_LENGTH: Final = 32768
VOCABULARY: Final = 8192


@dataclass(frozen=True)
class RunningEngine:
    """An engine that listens."""

    config: EngineConfig
    pid: int
    port: int
    bootstrap_port: int
    events: str | None
    events_control: str | None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True)
class Fleet:
    """The engines of one run."""

    tokenizer: Path
    prefill: tuple[RunningEngine, ...]
    decode: tuple[RunningEngine, ...]

    @property
    def all(self) -> tuple[RunningEngine, ...]:
        """All engines."""
        return (*self.prefill, *self.decode)

    @property
    def decoders(self) -> tuple[str, ...]:
        """The decoders' names."""
        return tuple(engine.config.decoder or "" for engine in self.decode)


@dataclass(frozen=True)
class Served:
    """Where clients find each decoder, and the processes that answer there."""

    urls: dict[str, str]
    pids: tuple[int, ...]


def cpu_ms(served: Served) -> list[float]:
    """CPU time of each process so far; its kernel counts it in nanoseconds, for each thread."""
    return [
        sum(int((one / "schedstat").read_text().split()[0]) for one in threads.iterdir()) / 1e6
        for threads in (Path(f"/proc/{pid}/task") for pid in served.pids)
    ]


@contextlib.contextmanager
def fleet(tokenizer: Path, configs: Sequence[EngineConfig]) -> Iterator[Fleet]:
    """Run engines until the block ends."""
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-m", "benchmarks.gateway.engine"]
        processes = [
            stack.enter_context(
                process([*command, msgspec.json.encode(config).decode()], output=subprocess.PIPE)
            )
            for config in configs
        ]
        engines = []
        for config, started in zip(configs, processes, strict=True):
            _, port, bootstrap, *events = _ready_line(started).split()
            published = events if config.events else (None, None)
            engines.append(
                RunningEngine(config, started.pid, int(port), int(bootstrap), *published)
            )
        yield Fleet(
            tokenizer,
            tuple(engine for engine in engines if engine.config.decoder is None),
            tuple(engine for engine in engines if engine.config.decoder is not None),
        )


def forget(engines: Fleet, pool_tokens: int | None = None) -> None:
    """Empty all trees and totals; prefill workers hold `pool_tokens` from now on."""
    for engine in engines.all:
        if pool_tokens is None or engine.config.decoder is not None:
            _ask(f"{engine.url}/forget")
        else:
            _ask(f"{engine.url}/forget", b"%d" % pool_tokens)


def totals(engines: Sequence[RunningEngine]) -> list[Totals]:
    """What each engine has done."""
    return [msgspec.json.decode(_ask(f"{one.url}/totals"), type=Totals) for one in engines]


def _ask(url: str, body: bytes | None = None) -> bytes:
    with urllib.request.urlopen(url, body, timeout=10) as response:
        content: bytes = response.read()
    return content


@contextlib.contextmanager
def gateway(
    engines: Fleet,
    folder: Path,
    name: str = "gateway",
    module: str = "ps_sglang.gateway",
    processes: int = 1,
    **changes: Any,
) -> Iterator[Served]:
    """Our gateway, one for all decoders; `module` runs it, with `changes` of its configuration."""
    config = GatewayConfig(
        host="127.0.0.1",
        port=0,
        base="base",
        context_length=CONTEXT_LENGTH,
        vocabulary=VOCABULARY,
        prefill=tuple(
            PrefillWorker(
                engine.config.name,
                engine.url,
                "127.0.0.1",
                engine.bootstrap_port,
                engine.events,
                engine.events_control,
            )
            for engine in engines.prefill
        ),
        decode=tuple(
            DecodeWorker(
                engine.config.name,
                engine.url,
                engine.config.decoder or "",
                engine.events,
                engine.events_control,
            )
            for engine in engines.decode
        ),
        tokenizer=str(engines.tokenizer),
    )
    with contextlib.ExitStack() as stack:
        meeting = stack.enter_context(tempfile.TemporaryDirectory())
        log = stack.enter_context((folder / f"{name}.log").open("wb"))
        pids, url = [], ""
        for number in range(processes):
            path = folder / f"{name}-{number}.json"
            several = replace(config, processes=processes, process=number, peers=meeting)
            path.write_bytes(replace(several, **changes).to_json())
            command = [sys.executable, "-m", module, "--config", str(path)]
            started = stack.enter_context(process(command, output=subprocess.PIPE, errors=log))
            url = _ready_line(started).split()[1]
            pids.append(started.pid)
        yield Served(dict.fromkeys(engines.decoders, url), tuple(pids))


@contextlib.contextmanager
def routers(engines: Fleet, folder: Path, options: Sequence[str] = ()) -> Iterator[Served]:
    """`sglang-router`, one for each decoder: it cannot tell decoders of one port apart."""
    with contextlib.ExitStack() as stack:
        urls, pids = {}, []
        for engine in engines.decode:
            command = ["--policy", "cache_aware", "--decode", engine.url, *options]
            for worker in engines.prefill:
                command += ["--prefill", worker.url, str(worker.bootstrap_port)]
            log = folder / f"router-{engine.config.name}.log"
            url, pid = stack.enter_context(router(command, log))
            urls[engine.config.decoder or ""] = url
            pids.append(pid)
        yield Served(urls, tuple(pids))


@contextlib.contextmanager
def router(options: Sequence[str], log: Path) -> Iterator[tuple[str, int]]:
    """A `sglang-router` for prefill and decode workers that is ready: its address and process.

    Raises LaunchError if it does not start.
    """
    port, metrics = free_ports(2)
    command = [sys.executable, "-m", "benchmarks.gateway.start_router"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics)]
    command += ["--pd-disaggregation", "--log-level", "warn"]
    command += ["--worker-startup-check-interval", "1", *options]
    url = f"http://127.0.0.1:{port}"
    # It waits for its clients for seconds when it is asked to end.
    with log.open("wb") as output, process(command, output, output, signal.SIGKILL) as started:
        wait_until_ok(f"{url}/readiness", started, _START_S, log)
        yield url, started.pid


def router_version() -> str:
    """Of `sglang-router`.

    Raises MissingPackageError if it is not installed.
    """
    try:
        return version("sglang-router")
    except PackageNotFoundError:
        raise MissingPackageError(
            "sglang-router, which ours is compared with, is not installed; run: "
            "pip install sglang-router==0.3.2"
        ) from None


@contextlib.contextmanager
def process(
    command: Sequence[str],
    output: object,
    errors: object = None,
    end: signal.Signals = signal.SIGTERM,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process in a group of its own; end it with the block, by signal `end`.

    It does not outlive this process, however that ends.
    """
    started = subprocess.Popen(
        list(command),
        stdout=output,
        stderr=errors,
        start_new_session=True,
        preexec_fn=partial(die_with_parent, os.getpid()),  # type: ignore[call-overload]
    )
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, end)
        try:
            started.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
        if started.stdout is not None:
            started.stdout.close()


def _ready_line(started: subprocess.Popen[bytes]) -> str:
    assert started.stdout is not None
    with selectors.DefaultSelector() as waiting:
        waiting.register(started.stdout, selectors.EVENT_READ)
        if not waiting.select(_START_S):
            raise LaunchError(f"{started.args!r} was not ready in {_START_S:.0f} s")
    line = started.stdout.readline().decode()
    if not line.startswith("ready"):
        raise LaunchError(f"{started.args!r} did not start: {line!r}")
    return line
