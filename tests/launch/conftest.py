"""Fixtures of the launcher's tests: a marker to find processes by, adapters of the tiny base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from safetensors.numpy import save_file

from ps_sglang.contract import MANIFEST_FILE
from ps_sglang.contract.tensors import read_tensors
from tests.support.processes import MARK, Marked


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Marked]:
    """Every process started by the test; the test fails if one is left when it ends."""
    mark = uuid4().hex
    monkeypatch.setenv(MARK, mark)
    processes = Marked(mark)
    yield processes
    left = processes.kill_all()
    assert not left, f"still running: {left}"


WriteAdapter = Callable[..., Path]
ALL_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture
def write_adapter(tiny: dict[str, Path], tmp_path: Path) -> WriteAdapter:
    """`write_adapter(name, rank, modules)`: an adapter of the tiny base that changes nothing."""

    def write(name: str, rank: int = 4, modules: tuple[str, ...] = ALL_MODULES) -> Path:
        folder = tmp_path / "adapters" / name
        folder.mkdir(parents=True)
        tensors = {}
        for tensor in read_tensors(tiny["base"]).values():
            module, _, kind = tensor.name.rpartition(".")
            if kind == "weight" and module.endswith(modules):
                out, width = tensor.shape
                prefix = f"base_model.model.{module}.lora_"
                tensors[f"{prefix}A.weight"] = np.zeros((rank, width), np.float32)
                tensors[f"{prefix}B.weight"] = np.zeros((out, rank), np.float32)
        save_file(tensors, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": [*modules]}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        shutil.copy(tiny["a"] / MANIFEST_FILE, folder)
        return folder

    return write
