"""The study's jobs: commands of this project in processes of their own, each done once.

A job that was stopped is started again by the next run of the study: a training goes on from its
last checkpoint. Nothing here has a time limit, for a job may be paused.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ps_sglang.errors import PsSglangError
from ps_sglang.launch.forked_process import die_with_parent
from ps_sglang.progress import progress

_SHOWN = 5


class JobError(PsSglangError):
    """A command of the study failed; its log says why."""


@dataclass(frozen=True)
class Runner:
    """Runs jobs, each on `threads` cores, with a log in `logs`.

    `makes`: a lock for each folder that a job makes, as units that run side by side may want the
    same one.
    """

    logs: Path
    threads: int
    makes: defaultdict[Path, threading.Lock] = field(
        default_factory=lambda: defaultdict(threading.Lock)
    )

    def run(self, name: str, module: str, *arguments: str) -> None:
        """`python -m module arguments`. Raises JobError with the end of its log."""
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{name}.log"
        progress(f"{name}: started, log {log}")
        threads = str(self.threads)
        with log.open("a") as output:
            done = subprocess.run(
                [sys.executable, "-m", module, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": threads},
                check=False,
                # A study that is ended leaves no training behind.
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
        if done.returncode != 0:
            end = log.read_text(errors="replace").splitlines()[-_SHOWN:]
            raise JobError("\n  ".join([f"{name} failed ({done.returncode}); {log} ends:", *end]))
        progress(f"{name}: done")


def flags(**values: object) -> Sequence[str]:
    """`learning_rate=1` -> `--learning-rate 1`; a tuple is several values, None leaves one out."""
    flags = []
    for name, value in values.items():
        if value is None:
            continue
        several = value if isinstance(value, tuple) else (value,)
        flags += [f"--{name.replace('_', '-')}", *(str(item) for item in several)]
    return flags
