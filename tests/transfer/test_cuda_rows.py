"""The GPU kernel on a CPU, by Triton's interpreter, and what needs a GPU where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

_AGAINST_THE_HOST = """
import numpy as np
import torch
from ps_sglang.engine.transfer import row_digest
from ps_sglang.engine.transfer.cuda_rows import RowLayout
from ps_sglang.engine.transfer.memory import HostRows

ROWS, WIDTHS = 40, [768, 64, 128, 16448]
random = np.random.default_rng(0)
source = [random.integers(0, 256, (ROWS, width), dtype=np.uint8) for width in WIDTHS]
layout = RowLayout(WIDTHS, "cpu")
numbers = lambda values: torch.tensor(np.asarray(values, dtype=np.int64))
places = lambda buffers: numbers([buffer.ctypes.data for buffer in buffers])
host = HostRows([a.ctypes.data for a in source], [a.nbytes for a in source], WIDTHS)
rows, to = random.permutation(ROWS)[:7], random.permutation(ROWS)[:7]
for write in (True, False):
    target = [np.zeros_like(buffer) for buffer in source]
    sums = layout.move(places(source), numbers(rows), places(target), numbers(to), write=write)
    products, words = sums.numpy().view(np.uint64)
    assert row_digest.from_sums(products, words, layout.line_count(7)) == host.digest(rows)
    for buffer, expected in zip(target, source, strict=True):
        others = np.setdiff1d(np.arange(ROWS), to)
        assert not buffer[others].any()
        assert (buffer[to] == expected[rows]).all() if write else not buffer.any()
try:
    RowLayout([100], "cpu")
except ValueError as error:
    assert "[100] bytes a buffer are not whole lines of 64" in str(error)
else:
    raise AssertionError
"""


def test_the_kernel_moves_and_digests_as_a_host_does() -> None:
    subprocess.run(
        [sys.executable, "-c", _AGAINST_THE_HOST],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        check=True,
    )


def test_a_handle_survives_the_wire() -> None:
    cuda_ipc = pytest.importorskip("ps_sglang.engine.transfer.cuda_ipc")
    content = bytes(range(64))
    assert cuda_ipc.handle_bytes(cuda_ipc.handle_of(content)) == content
    with pytest.raises(OSError, match="3 bytes are no handle"):
        cuda_ipc.handle_of(b"abc")


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU to check")
def test_the_check_refuses_a_machine_without_a_gpu() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "gpu_check.py"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no CUDA GPU is here" in done.stderr
