"""Tiny models and the clusters that serve them; at most one cluster runs at a time."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from benchmarks.tiny import DECODER_NOISE, Family, make_tiny
from benchmarks.worker_keys import let_in
from ps_sglang.contract import base_fingerprint, read_manifest, write_manifest
from ps_sglang.launch import Cluster, ClusterSpec
from ps_sglang.models.adapter import merge
from ps_sglang.models.checkpoint import WEIGHTS_FILE, write_sibling
from ps_sglang.models.stand_in import PROJECTIONS, Noise, write_stand_in_adapter
from tests.engine.served import Launch, Models, Served

# As the CPU platform sets it in a worker: no compiling of small sampling functions.
os.environ["TORCHDYNAMO_DISABLE"] = "1"


def _models(family: Family, folder: Path) -> Models:
    folders = make_tiny(family, folder)
    base = folders.pop("base")
    folders["twin"] = shutil.copytree(base, folder / "twin")
    manifest = read_manifest(folders["a"])
    assert manifest is not None
    write_manifest(folders["twin"], manifest)
    assert base_fingerprint(base) == manifest.base.fingerprint
    return Models(base, folders)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return _models("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return _models("qwen3", tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="session")
def adapted(llama: Models, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Decoders that are adapters: of different ranks, and of different parts of the base."""
    folder = tmp_path_factory.mktemp("adapted")
    kinds = (
        (4, PROJECTIONS),
        (8, ("q_proj", "v_proj")),
        (2, ("gate_proj", "up_proj", "o_proj", "down_proj")),
    )
    weights = load_file(llama.base / WEIGHTS_FILE)
    models = Models(llama.base, {"base": llama.base})
    for number, name in enumerate("abcdefgh"):
        rank, targets = kinds[number % len(kinds)]
        noise = Noise(DECODER_NOISE, seed=number)
        adapter = write_stand_in_adapter(llama.base, folder / name, noise, rank, targets)
        whole = models.decoders[name] = folder / f"{name}-merged"
        whole.mkdir()
        write_sibling(llama.base, whole, merge(weights, adapter))
        models.adapters[name] = adapter
    return models


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Start a cluster; the one before it ends, and the last one ends with the module."""
    running: list[Cluster] = []

    def start(models: Models, *decoders: str, **options: Any) -> Served:
        if running:
            running.pop().stop()
        served = models.decoders | models.adapters
        spec = ClusterSpec(
            prefill=f"base={models.base}",
            decoders=tuple(f"{name}={served[name]}" for name in decoders),
            port=0,
            log_dir=tmp_path_factory.mktemp("logs"),
            model_roots=(tmp_path_factory.getbasetemp(),),
            **options,
        )
        running.append(Cluster.start(spec))
        let_in(running[0])
        return Served(running[0], models)

    yield start
    for cluster in running:
        cluster.stop()


@pytest.fixture(scope="session")
def prompts() -> Callable[[int, int], list[list[int]]]:
    """Random prompts that no test has used before: `prompts(count, length)`.

    They differ in their first token, so that none finds a prefix of another in a tree.
    """
    source, first = random.Random(7), cycle(range(10, 480))

    def make(count: int, length: int) -> list[list[int]]:
        return [
            [next(first), *(source.randrange(10, 480) for _ in range(length - 1))]
            for _ in range(count)
        ]

    return make
