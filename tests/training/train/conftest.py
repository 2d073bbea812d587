from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ps_sglang.models.tiny import make_tiny


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PS_SGLANG_HOME", str(tmp_path / "home"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny tensors: threads cost more than they bring."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny Llama: base, a, b, c. Read only."""
    folder = tmp_path_factory.mktemp("llama")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PS_SGLANG_HOME", str(folder / "home"))
        return make_tiny("llama", folder / "models")
