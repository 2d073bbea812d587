from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks.worker_keys import let_in
from ps_sglang.launch import Cluster, ClusterSpec
from tests.support.engine_client import assert_conserved, post

# Made by `make .venv/installed` from requirements.txt.
PYTHON = Path(sys.prefix, "clients", "bin", "python")
PROGRAMS = Path(__file__).with_name("programs")
# litellm asks its makers' host for prices otherwise.
ENVIRON = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}


@pytest.fixture(scope="package")
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


@pytest.fixture(scope="package")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo: adapters `code`, `tools` and `math` in one worker, and the `base` itself."""
    logs = tmp_path_factory.mktemp("logs")
    with Cluster.start(
        ClusterSpec("base", ("code", "tools", "math"), port=0, log_dir=logs)
    ) as cluster:
        let_in(cluster)
        yield cluster.url
        assert_conserved(cluster)


@pytest.fixture(scope="package")
def plain(demo: str) -> Callable[..., Any]:
    """The demo's answer to a user's message, asked for by plain HTTP, greedy."""

    @cache
    def plain(decoder: str, content: str, tokens: int = 8) -> Any:
        messages = [{"role": "user", "content": content}]
        body = {"messages": messages, "temperature": 0, "max_tokens": tokens}
        return post(f"{demo}/models/{decoder}/v1/chat/completions", body)

    return plain


@pytest.fixture(scope="package")
def call() -> Callable[..., str]:
    """What a program of this folder prints, run once with the clients of today."""

    @cache
    def call(program: str, *words: str) -> str:
        command = [str(PYTHON), str(PROGRAMS / program), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=ENVIRON)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


@pytest.fixture
def run(url: str, call: Callable[..., str]) -> Callable[..., str]:
    """As `call`, on the cluster of tiny models."""
    return lambda program, *words: call(program, url, *words)
