"""What a benchmark starts ends with it, however it ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import pytest

# A benchmark as `__main__` is one, with a process that would run for ever.
BENCHMARK = """
import signal, subprocess, sys
from benchmarks.gateway.systems import process
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
# A shell that runs the tests in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
with process([sys.executable, "-c", "import signal; signal.pause()"], None) as started:
    print(started.pid, flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_its_benchmark(number: signal.Signals) -> None:
    command = [sys.executable, "-c", BENCHMARK]
    benchmark = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert benchmark.stdout is not None
    child = os.pidfd_open(int(benchmark.stdout.readline()))
    try:
        benchmark.send_signal(number)
        benchmark.wait()
        ended, _, _ = select.select([child], [], [], 60)
        assert ended
    finally:
        if not select.select([child], [], [], 0)[0]:
            signal.pidfd_send_signal(child, signal.SIGKILL)
        os.close(child)
        benchmark.stdout.close()
