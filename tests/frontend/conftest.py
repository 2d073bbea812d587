from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ps_sglang.frontend import PrefillShareBackend
from ps_sglang.models.tiny import make_tiny
from tests.frontend.standin_gateway import Gateway, serving


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_tiny("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def gateway(folders: dict[str, Path]) -> Iterator[Gateway]:
    with serving(folders["base"]) as running:
        yield running


@pytest.fixture
def backend(gateway: Gateway) -> PrefillShareBackend:
    return PrefillShareBackend(gateway.url)
