from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ps_sglang.launch import Cluster, ClusterSpec

# Made by `make .venv/installed` from requirements.txt.
PYTHON = Path(sys.prefix, "clients", "bin", "python")
PROGRAMS = Path(__file__).with_name("programs")


@pytest.fixture(scope="module")
def url(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster with decoders `a` and `own`, the base itself, open to one web page."""
    spec = ClusterSpec(
        prefill=f"base={tiny['base']}",
        decoders=(f"a={tiny['a']}", f"own={tiny['base']}"),
        port=0,
        cors_origins=("http://page.example",),
        log_dir=tmp_path_factory.mktemp("logs"),
    )
    with Cluster.start(spec) as cluster:
        yield cluster.url


@pytest.fixture(scope="module")
def run(url: str) -> Callable[..., str]:
    """What a program of this folder prints, run with the clients of today."""

    def run(program: str, *words: str) -> str:
        command = [str(PYTHON), str(PROGRAMS / program), url, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
