"""The process below an actor: one command of ours, which ends with its actor.

The first line on stdin is an `ActorCommand`. Then nothing comes but the end of stdin, when the
actor is gone.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import NoReturn

import msgspec

from ps_sglang.launch import __main__ as launch
from ps_sglang.launch import worker
from ps_sglang.launch.ray.command import ActorCommand


def main() -> int:
    """Exit status: that of the command."""
    # Ray's threads block SIGINT, and a child inherits that.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    signal.signal(signal.SIGTERM, _stop)  # until the command has a handler of its own
    command = msgspec.json.decode(sys.stdin.buffer.readline(), type=ActorCommand)
    threading.Thread(target=_end_with_actor, name="actor-watch", daemon=True).start()
    os.environ.update(command.environ)
    with tempfile.TemporaryDirectory(prefix="ps_sglang-key-") as folder:
        key = Path(folder) / "cluster.key"
        key.touch(0o600)
        key.write_text(command.secret)
        logs = () if command.log_dir is None else ("--log-dir", command.log_dir)
        word, *argv = command.argv
        run = {"launch": launch.main, "worker": worker.main}[word]
        return run((*argv, *logs, "--cluster-key-file", str(key)))


def _stop(*_: object) -> NoReturn:
    sys.exit(0)


def _end_with_actor() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
