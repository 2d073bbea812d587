from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoint folders of a tiny Llama: base, a, b, c. Read only."""
    from benchmarks.tiny import make_tiny  # loads torch

    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PS_SGLANG_HOME", str(folder / "home"))
        return make_tiny("llama", folder / "models")
