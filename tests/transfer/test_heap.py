"""Freed frames are used again instead of being handed back to the kernel."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys
from ps_sglang.engine.transfer.heap import keep_freed_frames

def a_round():
    frames = [b"x" * (4 << 20) for _ in range(4)]

if sys.argv[1] == "kept":
    keep_freed_frames()
a_round()
a_round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    a_round()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not the GNU C library")
def test_frames_take_no_page_faults_once_they_have_been_used() -> None:
    pages = 5 * 4 * (4 << 20) // 4096
    assert faults("kept") < pages / 20
    assert faults("as it is") > pages / 2
