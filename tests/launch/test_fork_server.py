"""The fork server, with small programs in place of workers."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ps_sglang.launch import fork_server
from ps_sglang.launch.fork_server_client import ForkServerClient
from ps_sglang.launch.messages import Start, StartMethod
from tests.support.processes import STOP_S, Marked

PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    folder = tmp_path / "runtime"
    folder.mkdir()
    return folder


@pytest.fixture
def link(marked: Marked, runtime: Path, tmp_path: Path) -> Iterator[ForkServerClient]:
    environ = os.environ | {"PYTHONPATH": str(PROGRAMS)}
    link = ForkServerClient(runtime, None, environ, tmp_path / "fork-server.log")
    yield link
    link.close(0)


def start(link: ForkServerClient, name: str, mode: str, folder: Path, **env: str) -> Path:
    """Start the program in `mode` and wait until it and its child are up."""
    folder.mkdir(exist_ok=True)
    log = folder / f"{name}.log"
    os.mkfifo(log) if mode != "ends" else log.touch()
    environ = {"OWN": name, **env}
    link.start(Start(name, "stubborn", (mode,), environ, str(log), StartMethod.EXEC))
    if mode != "ends":
        with log.open() as lines:
            assert [lines.readline(), lines.readline()] == [f"up {name}\n"] * 2
    return log


def test_a_process_has_its_own_environment_and_log(link: ForkServerClient, tmp_path: Path) -> None:
    start(link, "one", "plain", tmp_path)
    start(link, "two", "plain", tmp_path)
    assert set(link.pids) == {"one", "two"}
    assert not link.exits


def test_an_end_is_reported_with_its_status(link: ForkServerClient, tmp_path: Path) -> None:
    start(link, "one", "ends", tmp_path)
    assert link.wait_for(lambda: "one" in link.exits, STOP_S)
    assert link.exits == {"one": 3}


def test_a_process_is_started_in_place_of_one_that_ended(
    link: ForkServerClient, tmp_path: Path
) -> None:
    start(link, "one", "ends", tmp_path)
    assert link.wait_for(lambda: "one" in link.exits, STOP_S)
    first = link.pids["one"]
    start(link, "one", "plain", tmp_path / "again")
    assert link.pids["one"] != first
    assert not link.exits


def test_what_a_dead_process_had_started_goes_with_it(
    link: ForkServerClient, tmp_path: Path, marked: Marked
) -> None:
    start(link, "one", "stubborn", tmp_path)
    assert len(marked.pids()) == 3  # host, program, child
    os.kill(link.pids["one"], signal.SIGKILL)
    assert link.wait_for(lambda: "one" in link.exits, STOP_S)
    assert link.exits == {"one": -signal.SIGKILL}
    psutil.wait_procs([psutil.Process(p) for p in marked.pids() if p != link.pid], STOP_S)
    assert marked.pids() == [link.pid]


def test_stop_takes_one_process_and_leaves_the_others(
    link: ForkServerClient, tmp_path: Path
) -> None:
    start(link, "one", "plain", tmp_path)
    start(link, "two", "plain", tmp_path)
    link.stop("one", grace_s=STOP_S)
    assert link.exits == {"one": -signal.SIGTERM}


def test_a_process_that_ignores_sigterm_is_killed(link: ForkServerClient, tmp_path: Path) -> None:
    start(link, "one", "stubborn", tmp_path)
    link.stop("one", grace_s=0.1)
    assert link.exits == {"one": -signal.SIGKILL}


@pytest.mark.parametrize("grace_s", [0.0, 0.1])
def test_close_leaves_nothing(
    link: ForkServerClient, tmp_path: Path, marked: Marked, runtime: Path, grace_s: float
) -> None:
    start(link, "one", "stubborn", tmp_path)
    start(link, "two", "plain", tmp_path)
    memory = marked.shared_memory()
    assert len(memory) == 2
    link.close(grace_s)
    assert marked.pids() == []
    assert not runtime.exists()
    assert not any(path.exists() for path in memory)


def test_memory_that_was_there_before_stays(runtime: Path, tmp_path: Path, marked: Marked) -> None:
    foreign = Path(f"/dev/shm/ps_sglang_test_foreign_{os.getpid()}")
    foreign.write_bytes(bytes(mmap.PAGESIZE))
    try:
        environ = os.environ | {"PYTHONPATH": str(PROGRAMS)}
        link = ForkServerClient(runtime, None, environ, tmp_path / "fork-server.log")
        start(link, "one", "plain", tmp_path, MAPS=str(foreign))
        memory = marked.shared_memory()
        assert foreign in memory
        link.close(0)
        assert [path for path in memory if path.exists()] == [foreign]
    finally:
        foreign.unlink(missing_ok=True)


def test_a_killed_host_takes_its_processes_along(
    link: ForkServerClient, tmp_path: Path, marked: Marked
) -> None:
    start(link, "one", "plain", tmp_path)
    workers = [psutil.Process(link.pids["one"])]
    for path in marked.shared_memory():
        path.unlink()  # its keeper is about to go
    os.kill(link.pid, signal.SIGKILL)
    assert link.wait_for(lambda: link.gone, STOP_S)
    assert psutil.wait_procs(workers, STOP_S)[1] == []
    link.stop("one", 0.0)
    link.close(0.0)  # what it could not be told is no error


def test_a_process_is_killed_at_a_standstill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it could map shared memory after its own has been noted, and nobody would remove it."""
    standing: list[bool] = []

    def shared_memory_files(pid: int) -> set[Path]:
        deadline = time.monotonic() + STOP_S
        while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
            assert time.monotonic() < deadline, "it still runs"
        standing.append(True)
        return set()

    monkeypatch.setattr(fork_server, "shared_memory_files", shared_memory_files)
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            fork_server.ForkServer(tmp_path)._kill([process.pid])
        finally:
            process.kill()
    assert standing == [True]


def test_a_host_whose_launcher_is_killed_cleans_up(
    marked: Marked, runtime: Path, tmp_path: Path
) -> None:
    log = tmp_path / "one.log"
    os.mkfifo(log)
    launcher = subprocess.Popen(
        [sys.executable, "-c", _LAUNCHER, *map(str, (runtime, tmp_path / "fork-server.log", log))],
        env=os.environ | {"PYTHONPATH": str(PROGRAMS)},
    )
    with log.open() as lines:
        assert lines.readline() == "up one\n"
    memory = marked.shared_memory()
    assert memory
    launcher.kill()
    launcher.wait()
    assert marked.wait_until_gone() == []
    assert not runtime.exists()
    assert not any(path.exists() for path in memory)


_LAUNCHER = """
import os, sys, time
from pathlib import Path
from ps_sglang.launch.fork_server_client import ForkServerClient
from ps_sglang.launch.messages import StartMethod, Start
link = ForkServerClient(Path(sys.argv[1]), None, os.environ, Path(sys.argv[2]))
link.send(Start("one", "stubborn", ("plain",), {"OWN": "one"}, sys.argv[3], StartMethod.EXEC))
link.wait_for(lambda: link.gone)
"""


def test_what_is_no_command_is_passed_over(link: ForkServerClient, tmp_path: Path) -> None:
    assert link._process.stdin is not None
    link._process.stdin.write(b"no command\n\xff\n" + b"[" * 200_000 + b"\n")
    start(link, "one", "plain", tmp_path)
    link.stop("one", grace_s=STOP_S)
    assert link.exits == {"one": -signal.SIGTERM}
    assert "no command of the launcher" in (tmp_path / "fork-server.log").read_text()


def test_what_is_no_event_is_passed_over(
    runtime: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A library that prints into the pipe, say."""
    environ = os.environ | {"PYTHONPATH": str(PROGRAMS)}
    link = ForkServerClient(runtime, None, environ, tmp_path / "fork-server.log", module="noisy")
    try:
        assert link.wait_for(lambda: link.import_s == 0.5, STOP_S)
    finally:
        link.close(0)
    assert "the fork server wrote no event" in capsys.readouterr().err
