from __future__ import annotations

from pathlib import Path

import pytest

from ps_sglang.models.tiny import make_tiny
from tests.verify.standin_cluster import Models

Folders = dict[str, Path]


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_tiny("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def models(llama: Folders) -> Models:
    return Models(llama)
