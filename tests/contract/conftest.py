"""Hand-made checkpoint folders: small, and every item of them can be changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.contract.folder_parts import (
    CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    Build,
    tensors,
    write_json,
)


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PS_SGLANG_HOME", str(tmp_path / "home"))


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """`build(name, config={...}, ...)`: a folder like all others except for what is given."""

    def build_one(
        name: str,
        *,
        config: dict[str, Any] | None = None,
        tokenizer: dict[str, Any] | None = None,
        tokenizer_config: dict[str, Any] | None = None,
        weights: dict[str, np.ndarray] | None = None,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        write_json(folder / "config.json", CONFIG | (config or {}))
        write_json(folder / "tokenizer.json", TOKENIZER | (tokenizer or {}))
        write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG | (tokenizer_config or {}))
        save_file(tensors() if weights is None else weights, folder / "model.safetensors")
        return folder

    return build_one
