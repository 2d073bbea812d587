"""Tiny models in float32."""

from __future__ import annotations

from pathlib import Path

import pytest

from ps_sglang.models.tiny import make_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """base, a, b, c -> checkpoint folder."""
    return make_tiny("llama", tmp_path_factory.mktemp("tiny"))
