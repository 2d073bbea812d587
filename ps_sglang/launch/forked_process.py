"""From a fresh fork to a worker: what must differ from the fork server is reset here."""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
import tempfile
from typing import Final

from ps_sglang.launch.messages import Start, StartMethod
from ps_sglang.open_files import raise_limit

_PR_SET_PDEATHSIG: Final = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel SIGKILL this process when `parent` dies; exits if it has already died."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def detach(start: Start, fork_server: int) -> None:
    """Leave the parent's session, pipes and signal handlers; output goes to the worker's log."""
    os.setsid()
    raise_limit()  # a worker has a connection for each of its requests
    die_with_parent(fork_server)
    log = os.open(start.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(log)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    os.environ.update(start.env)


def become(start: Start) -> None:
    """Turn this process into `python -m start.module *start.argv`.

    A fork returns (or raises) when the module ends, an exec does not return at all.
    """
    if start.start_method is StartMethod.EXEC:
        os.execv(sys.executable, [sys.executable, "-m", start.module, *start.argv])
    _reset_inherited_state(start.env)
    sys.argv = [start.module, *start.argv]
    runpy.run_module(start.module, run_name="__main__", alter_sys=True)


def _reset_inherited_state(env: dict[str, str]) -> None:
    """Undo what the parent's imports have fixed for all its children.

    `random`, `uuid` and `ssl` look after themselves; NumPy's global generator and the
    cached folder of `tempfile` do not, and OpenMP reads its thread count only when loaded.
    """
    import numpy
    import torch

    tempfile.tempdir = None
    numpy.random.seed()
    torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
