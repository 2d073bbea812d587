"""Programs that nobody has read, run where they can harm nothing: one process for each.

A program gets an interpreter of its own without site packages, environment or terminal, bounded
by rlimits (processor time, memory, no forks, no bytes written) and by an audit hook that refuses
whatever is not computing: files, sockets, processes, signals, modules beyond a list. This is
meant for what language models write; against people who attack it, take a virtual machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_CHILD: Final = str(Path(__file__).with_name("sandbox_child.py"))
_LONGEST_ANSWER: Final = 1 << 16


@dataclass(frozen=True)
class SandboxLimits:
    """What one program may use: seconds of processor and of wall-clock time, bytes of memory."""

    cpu_seconds: int = 3
    wall_seconds: float = 20.0
    memory: int = 512 << 20

    def rlimits(self) -> dict[str, int]:
        """By the names of the module `resource`."""
        return {
            "RLIMIT_CPU": self.cpu_seconds,
            "RLIMIT_AS": self.memory,
            "RLIMIT_NPROC": 0,
            "RLIMIT_FSIZE": 0,
            "RLIMIT_CORE": 0,
            "RLIMIT_NOFILE": 32,
        }


LIMITS: Final = SandboxLimits()
"""Far more than a right answer needs. Processor time decides, so that a busy machine does not."""


@dataclass(frozen=True)
class Program:
    """Python source, and the calls to make once it has run: a function's name, its arguments.

    Arguments and results are plain JSON.
    """

    source: str
    calls: tuple[tuple[str, list[Any]], ...]


def run_all(programs: Sequence[Program], limits: SandboxLimits = LIMITS) -> list[list[Any] | None]:
    """What the calls of each program returned; None where it failed, was refused or ran over.

    As many run at once as there are processors.
    """
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda program: run(program, limits), programs))


def run(program: Program, limits: SandboxLimits) -> list[Any] | None:
    """What the calls of one program returned, or None."""
    job = {"program": program.source, "calls": program.calls, "limits": limits.rlimits()}
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={},
        start_new_session=True,
    )
    try:
        return _values(_talk(child, json.dumps(job).encode(), limits.wall_seconds))
    finally:
        # Before it is waited for, so that the number still is this group's.
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _talk(child: subprocess.Popen[bytes], job: bytes, seconds: float) -> bytes:
    """Hand over the job, read the answer: never more than is allowed, never longer."""
    assert child.stdin is not None
    assert child.stdout is not None
    deadline = time.monotonic() + seconds
    answer = b""
    poll = select.poll()
    poll.register(child.stdout, select.POLLIN)
    with child.stdin, child.stdout:
        with contextlib.suppress(BrokenPipeError):  # the child did not live to read it
            child.stdin.write(job)
            child.stdin.close()
        while len(answer) <= _LONGEST_ANSWER:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                return b""
            part = os.read(child.stdout.fileno(), _LONGEST_ANSWER)
            if not part:
                return answer
            answer += part
    return b""


def _values(answer: bytes) -> list[Any] | None:
    try:
        values = json.loads(answer)["values"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return None
    return values if isinstance(values, list) else None
